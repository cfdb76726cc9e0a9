// Renders the chart as Helm does (Go's text/template with the sprig functions) for machines without Helm.
// Usage: render CHART RELEASE NAMESPACE [VALUES.yaml ...] > manifests
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

type values = map[string]interface{}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

func load(path string) values {
	data, err := os.ReadFile(path)
	fail(err)
	out := values{}
	fail(yaml.Unmarshal(data, &out))
	return out
}

// Later values go before earlier ones; maps are merged, all else is replaced, null removes.
func merge(into, from values) values {
	for k, v := range from {
		a, isA := into[k].(values)
		b, isB := v.(values)
		switch {
		case v == nil:
			delete(into, k)
		case isA && isB:
			into[k] = merge(a, b)
		default:
			into[k] = v
		}
	}
	return into
}

type files struct{ root string }

func (f files) Get(name string) string {
	data, err := os.ReadFile(filepath.Join(f.root, name))
	fail(err)
	return string(data)
}

func main() {
	if len(os.Args) < 4 {
		fail(fmt.Errorf("usage: render CHART RELEASE NAMESPACE [VALUES.yaml ...]"))
	}
	root, release, namespace := os.Args[1], os.Args[2], os.Args[3]
	merged := load(filepath.Join(root, "values.yaml"))
	for _, path := range os.Args[4:] {
		merged = merge(merged, load(path))
	}
	chart := load(filepath.Join(root, "Chart.yaml"))
	meta := values{"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]}
	data := values{
		"Values": merged, "Chart": meta, "Files": files{root},
		"Release":      values{"Name": release, "Namespace": namespace, "Service": "Helm", "IsInstall": true},
		"Capabilities": values{"KubeVersion": values{"Version": "v1.34.0"}},
	}
	t := template.New("chart").Option("missingkey=zero")
	funcs := sprig.TxtFuncMap()
	funcs["toYaml"] = func(v interface{}) string {
		var out bytes.Buffer
		e := yaml.NewEncoder(&out)
		e.SetIndent(2)
		fail(e.Encode(v))
		return strings.TrimSuffix(out.String(), "\n")
	}
	funcs["include"] = func(name string, v interface{}) (string, error) {
		var out bytes.Buffer
		err := t.ExecuteTemplate(&out, name, v)
		return out.String(), err
	}
	t.Funcs(funcs)
	paths, err := filepath.Glob(filepath.Join(root, "templates", "*"))
	fail(err)
	sort.Strings(paths)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		fail(err)
		_, err = t.New(filepath.Base(path)).Parse(string(text))
		fail(err)
	}
	for _, path := range paths {
		name := filepath.Base(path)
		if strings.HasPrefix(name, "_") || strings.HasSuffix(name, ".txt") {
			continue
		}
		var out bytes.Buffer
		fail(t.ExecuteTemplate(&out, name, data))
		if strings.TrimSpace(out.String()) != "" {
			fmt.Printf("---\n# Source: %s\n%s\n", name, out.String())
		}
	}
}
