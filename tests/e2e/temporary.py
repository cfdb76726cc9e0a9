"""A cluster of a test: gone with its folder at the end of the `with`, and after a failure the agents' last words first."""
import shutil

from topology import Cluster


class TemporaryCluster(Cluster):
    def __exit__(self, kind, *_):
        if kind:
            for name in self.nodes:
                print(f"--- last lines of sluiced's log on {name}\n{self.processes.log(f'sluiced-{name}', last=25)}", flush=True)
        for trouble in self.take_down():
            print(f"     taking down: {trouble}", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
