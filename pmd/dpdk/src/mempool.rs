//! Where DPDK's packet memory and ours meet.
//!
//! [`Shared`]: one mbuf header per chunk of the frame pool, in a mempool whose free objects *are* the frame pool's free
//! chunks. The headers are pinned to external buffers, which is DPDK's own way to say that a packet's bytes lie elsewhere
//! (`rte_pktmbuf_pool_create_extbuf`); what is ours is the mempool handler: taking an mbuf takes a chunk from the calling
//! worker's [`PoolCache`], freeing one gives it back. [`Own`]: an ordinary mempool, for devices that need the bytes to lie
//! behind the header; frames are copied.
//!
//! Owner: made by the control thread, used by whatever thread a driver runs on. Invariants: header *k* names chunk *k* for
//! life; a header whose chunk is not with a driver has reference count 1 and no successor. Cost: an indirect call and a
//! thread-local read per burst, a stack push or pop per mbuf.
//! Source: DPDK Programmer's Guide, "Mempool Library" (handlers) and "Mbuf Library" (pinned external buffers).

use crate::eal::strerror;
use crate::error::DpdkError;
use sluice_dpdk_sys as sys;
use sluice_port::{CHUNK, FramePool, PoolCache};
use std::cell::Cell;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

/// `RTE_MEMPOOL_F_NO_SPREAD` and `RTE_MEMPOOL_F_NO_IOVA_CONTIG`: objects follow each other without padding, over the borders of
/// pages too.
const PACKED: c_uint = 0x01 | 0x20;
/// Name of the mempool handler.
const HANDLER: &std::ffi::CStr = c"sluicegate";
/// Where an mbuf's buffer begins in its chunk: behind the chain's link, since drivers may fill a buffer from its first byte, and
/// on a cache line's border.
pub const BUFFER_AT: usize = 64;
const _: () = assert!(BUFFER_AT >= sluice_port::frame::LINK_BYTES);
/// Bytes of a shared mbuf's buffer.
pub const BUFFER: usize = CHUNK - BUFFER_AT;
/// Bytes of an mbuf's buffer in [`Own`]: DPDK's usual 2,048 and its headroom.
const OWN_BUFFER: u16 = 2048 + 128;
/// Data bytes of such an mbuf.
pub const OWN_DATA: usize = 2048;

thread_local! {
    /// The cache of the worker that is inside a driver just now.
    static CURRENT: Cell<*mut PoolCache> = const { Cell::new(null_mut()) };
}

/// Lends a worker's cache to the handler for the length of a driver call.
pub struct Lent {
    before: *mut PoolCache,
}

impl Lent {
    /// The caller does not touch `cache` while this lives.
    #[inline]
    pub fn new(cache: &mut PoolCache) -> Lent {
        Lent { before: CURRENT.replace(cache) }
    }
}

impl Drop for Lent {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// The headers of a frame pool's chunks.
#[derive(Debug)]
pub struct Shared {
    pool: *mut sys::rte_mempool,
    /// Header of each chunk.
    headers: Box<[*mut sys::rte_mbuf]>,
    handler: Box<Handler>,
}

// SAFETY: the pointers name memory that lives as long as the value; the table is not changed after `new`, and a header is
// only touched by whoever owns its chunk.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// What the mempool's callbacks see.
struct Handler {
    frames: Arc<FramePool>,
    base: NonNull<u8>,
    /// For threads that are no worker: control while it sets a device up, and drivers' own.
    spare: Mutex<PoolCache>,
    /// Headers are being made or the pool is being freed: what is "freed" now are new headers, and what is "taken" are old
    /// ones. Neither moves a chunk.
    apart: AtomicBool,
    made: Mutex<Vec<*mut c_void>>,
    /// [`Shared::headers`], once they are made.
    headers: AtomicPtr<*mut sys::rte_mbuf>,
}

impl Handler {
    /// Chunk of a header of ours.
    ///
    /// # Safety
    /// `object` is an mbuf of this handler's pool.
    #[inline(always)]
    unsafe fn chunk(&self, object: *const c_void) -> u32 {
        // SAFETY: the caller's condition; a header's buffer is its chunk for life.
        let buffer = unsafe { (*object.cast::<sys::rte_mbuf>()).buf_addr };
        (buffer.addr().wrapping_sub(self.base.as_ptr().addr()) / CHUNK) as u32
    }

    /// Runs `work` on the cache of the worker that called the driver, or else on the spare one.
    #[inline]
    fn with_cache<T>(&self, work: impl FnOnce(&mut PoolCache) -> T) -> T {
        // SAFETY: the pointer was made from a worker's `&mut PoolCache`, which that worker, on this thread, does not touch
        // while the driver call that we are in lasts (`Lent`).
        if let Some(cache) = unsafe { CURRENT.get().as_mut() }
            && Arc::ptr_eq(cache.pool(), &self.frames)
        {
            return work(cache);
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work(&mut spare);
        spare.account();
        done
    }
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handler").field("frames", &self.frames.frames()).finish_non_exhaustive()
    }
}

/// Every frame pool has one set of headers, shared by all devices.
static ALL: Mutex<Vec<(usize, Weak<Shared>)>> = Mutex::new(Vec::new());
static NEXT_NAME: AtomicU32 = AtomicU32::new(0);

fn fresh_name() -> CString {
    let name = format!("sluice-{}", NEXT_NAME.fetch_add(1, Ordering::Relaxed));
    CString::new(name).unwrap_or_default()
}

impl Shared {
    /// The headers of this pool, made if they are not there. DPDK must have been started.
    pub fn of(frames: &Arc<FramePool>) -> Result<Arc<Shared>, DpdkError> {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, shared)| shared.strong_count() > 0);
        let region = frames.region().0.as_ptr().addr();
        if let Some(shared) = all.iter().find(|(at, _)| *at == region).and_then(|(_, shared)| shared.upgrade()) {
            return Ok(shared);
        }
        let shared = Arc::new(Shared::new(frames)?);
        all.push((region, Arc::downgrade(&shared)));
        Ok(shared)
    }

    fn new(frames: &Arc<FramePool>) -> Result<Shared, DpdkError> {
        let count = frames.frames();
        let failed = |why| DpdkError::Memory { what: format!("the headers of {count} frames"), why };
        register_handler();
        let handler = Box::new(Handler {
            frames: Arc::clone(frames),
            base: frames.region().0,
            spare: Mutex::new(frames.cache()),
            apart: AtomicBool::new(true),
            made: Mutex::new(Vec::with_capacity(count)),
            headers: AtomicPtr::new(null_mut()),
        });
        let element = size_of::<sys::rte_mbuf>() + size_of::<sys::rte_mbuf_ext_shared_info>();
        let private = size_of::<sys::rte_pktmbuf_pool_private>();
        let name = fresh_name();
        // SAFETY: the name is a string, copied by the call; no cache, since ours is the worker's; any socket.
        let pool = unsafe {
            sys::rte_mempool_create_empty(
                name.as_ptr(),
                count as c_uint,
                element as c_uint,
                0,
                private as c_uint,
                -1,
                0,
            )
        };
        if pool.is_null() {
            // SAFETY: reads a thread-local number.
            return Err(failed(strerror(unsafe { sys::sg_errno() })));
        }
        let mut shared = Shared { pool, headers: Box::default(), handler };
        let config: *const Handler = &*shared.handler;
        let room = sys::rte_pktmbuf_pool_private {
            mbuf_data_room_size: BUFFER as u16,
            mbuf_priv_size: 0,
            flags: sys::SG_PINNED_EXTBUF,
        };
        // SAFETY: a mempool of ours that is not populated yet, as both calls ask; the handler outlives the pool (`Drop`
        // frees the pool first); `room` is read within the call.
        let populated = unsafe {
            match sys::rte_mempool_set_ops_byname(pool, HANDLER.as_ptr(), config.cast_mut().cast()) {
                0 => {
                    sys::rte_pktmbuf_pool_init(pool, (&raw const room).cast_mut().cast());
                    sys::rte_mempool_populate_default(pool)
                }
                error => error,
            }
        };
        if populated < 0 {
            return Err(failed(strerror(populated)));
        }
        let made = std::mem::take(&mut *shared.handler.made.lock().unwrap_or_else(PoisonError::into_inner));
        if made.len() != count {
            return Err(failed(format!("{} were made", made.len())));
        }
        shared.headers = made.into_iter().map(<*mut c_void>::cast).collect();
        for (chunk, header) in shared.headers.iter().enumerate() {
            // SAFETY: the header is an object of the pool, `element` bytes long and nobody else's until `apart` ends; the
            // chunk is one of the frame pool's.
            unsafe { make_header(*header, pool, frames.chunk(chunk as u32)) };
        }
        shared.handler.headers.store(shared.headers.as_mut_ptr(), Ordering::Release);
        shared.handler.apart.store(false, Ordering::Release);
        Ok(shared)
    }

    /// For queue set-up.
    pub fn pool(&self) -> *mut sys::rte_mempool {
        self.pool
    }

    /// First byte of the frame pool.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.handler.base
    }

    /// The header of a chunk.
    #[inline]
    pub fn header(&self, chunk: u32) -> *mut sys::rte_mbuf {
        self.headers[chunk as usize]
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Freeing a mempool takes each object out of it once more.
        self.handler.apart.store(true, Ordering::Release);
        // SAFETY: no device uses the pool any more: each holds an Arc of this. Freed before the handler.
        unsafe { sys::rte_mempool_free(self.pool) };
    }
}

/// Makes the header of a chunk.
///
/// # Safety
/// `header` names an mbuf and its shared info behind it, which nobody else touches; `chunk` is a chunk of the frame pool.
unsafe fn make_header(header: *mut sys::rte_mbuf, pool: *mut sys::rte_mempool, chunk: NonNull<u8>) {
    // SAFETY: the caller's condition; both structures are plain data for which zero is valid.
    unsafe {
        let info: *mut sys::rte_mbuf_ext_shared_info = header.add(1).cast();
        info.write(sys::rte_mbuf_ext_shared_info {
            free_cb: Some(last_reference),
            fcb_opaque: header.cast(),
            refcnt: 1,
        });
        header.write_bytes(0, 1);
        let buffer = chunk.add(BUFFER_AT);
        (*header).buf_addr = buffer.as_ptr().cast();
        // Device addresses are virtual ones (`--iova-mode=va`).
        (*header).buf_iova = buffer.as_ptr().addr() as u64;
        (*header).buf_len = BUFFER as u16;
        (*header).data_off = 128;
        (*header).refcnt = 1;
        (*header).nb_segs = 1;
        (*header).port = u16::MAX;
        (*header).ol_flags = sys::SG_EXTERNAL;
        (*header).pool = pool;
        (*header).shinfo = info;
    }
}

/// DPDK's callback for a pinned buffer whose last clone is gone after its header was freed.
unsafe extern "C" fn last_reference(_buffer: *mut c_void, header: *mut c_void) {
    let header: *mut sys::rte_mbuf = header.cast();
    // SAFETY: DPDK calls this once for a header that `make_header` made and that nobody holds; its state is put back as
    // a free one's before it goes to its mempool.
    unsafe {
        (*header).ol_flags = sys::SG_EXTERNAL;
        (*header).next = null_mut();
        (*header).nb_segs = 1;
        (*(*header).shinfo).refcnt = 1;
        sys::sg_raw_free(header);
    }
}

fn register_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut ops = sys::rte_mempool_ops {
            alloc: Some(handler_alloc),
            free: Some(handler_free),
            enqueue: Some(handler_enqueue),
            dequeue: Some(handler_dequeue),
            get_count: Some(handler_count),
            ..Default::default()
        };
        for (to, from) in ops.name.iter_mut().zip(HANDLER.to_bytes()) {
            *to = *from as std::ffi::c_char;
        }
        // SAFETY: the structure is copied within the call. It fails only if DPDK's table of handlers is full, which the
        // next `set_ops_byname` then says.
        unsafe { sys::rte_mempool_register_ops(&raw const ops) };
    });
}

/// # Safety
/// `pool` is a mempool with this handler, whose `pool_config` is a [`Handler`] that outlives it.
#[inline]
unsafe fn handler_of<'a>(pool: *const sys::rte_mempool) -> &'a Handler {
    // SAFETY: the caller's condition.
    unsafe { &*(*pool).pool_config.cast::<Handler>() }
}

unsafe extern "C" fn handler_alloc(_pool: *mut sys::rte_mempool) -> c_int {
    0
}

unsafe extern "C" fn handler_free(_pool: *mut sys::rte_mempool) {}

unsafe extern "C" fn handler_enqueue(pool: *mut sys::rte_mempool, objects: *const *mut c_void, count: c_uint) -> c_int {
    // SAFETY: DPDK calls this for our pools alone, with `count` objects of that pool which it no longer names.
    unsafe {
        let handler = handler_of(pool);
        let objects = std::slice::from_raw_parts(objects, count as usize);
        if handler.apart.load(Ordering::Relaxed) {
            handler.made.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(objects);
            return 0;
        }
        handler.with_cache(|cache| {
            for object in objects {
                cache.free_index(handler.chunk(*object));
            }
        });
    }
    0
}

unsafe extern "C" fn handler_dequeue(pool: *mut sys::rte_mempool, objects: *mut *mut c_void, count: c_uint) -> c_int {
    // SAFETY: as for `handler_enqueue`, with room for `count` pointers.
    unsafe {
        let handler = handler_of(pool);
        let objects = std::slice::from_raw_parts_mut(objects, count as usize);
        if handler.apart.load(Ordering::Relaxed) {
            objects.fill(null_mut());
            return 0;
        }
        let headers = handler.headers.load(Ordering::Acquire);
        handler.with_cache(|cache| {
            for at in 0..objects.len() {
                let Some(chunk) = cache.alloc_index() else {
                    for object in &objects[..at] {
                        cache.free_index(handler.chunk(*object));
                    }
                    return -libc::ENOBUFS;
                };
                objects[at] = (*headers.add(chunk as usize)).cast();
            }
            0
        })
    }
}

unsafe extern "C" fn handler_count(pool: *const sys::rte_mempool) -> c_uint {
    // SAFETY: as for `handler_enqueue`.
    let handler = unsafe { handler_of(pool) };
    if handler.apart.load(Ordering::Relaxed) {
        return handler.made.lock().unwrap_or_else(PoisonError::into_inner).len() as c_uint;
    }
    handler.frames.frames().saturating_sub(handler.frames.outstanding()) as c_uint
}

/// DPDK's callback for memory that was given to a mempool which ends.
unsafe extern "C" fn unmap(chunk: *mut sys::rte_mempool_memhdr, _: *mut c_void) {
    // SAFETY: the pages that `packed` mapped, which nobody uses any more.
    unsafe { libc::munmap((*chunk).addr, (*chunk).len) };
}

/// A mempool of one device, with its own packet memory.
#[derive(Debug)]
pub struct Own(*mut sys::rte_mempool);

// SAFETY: DPDK's mempools may be used from any thread.
unsafe impl Send for Own {}
// SAFETY: as above.
unsafe impl Sync for Own {}

impl Own {
    /// A mempool of `count` mbufs near `socket` (-1: anywhere).
    pub fn new(count: usize, socket: c_int) -> Result<Own, DpdkError> {
        let name = fresh_name();
        // SAFETY: the name is a string, copied by the call.
        let pool = unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr(), count as c_uint, 0, 0, OWN_BUFFER, socket) };
        if pool.is_null() {
            // SAFETY: reads a thread-local number.
            let why = strerror(unsafe { sys::sg_errno() });
            return Err(DpdkError::Memory { what: format!("{count} packets of a device with memory of its own"), why });
        }
        Ok(Own(pool))
    }

    /// The same in one piece, each mbuf right behind the last: `net_af_xdp` gives the kernel as many bytes as mbufs have, from
    /// the first on, and DPDK's own mempools leave gaps at the borders of pages (on small pages nearly half of them), so that
    /// the kernel would refuse the last ones in silence.
    pub fn packed(count: usize, socket: c_int) -> Result<Own, DpdkError> {
        let failed =
            |why| DpdkError::Memory { what: format!("{count} packets of a device with memory of its own"), why };
        let room = sys::rte_pktmbuf_pool_private { mbuf_data_room_size: OWN_BUFFER, mbuf_priv_size: 0, flags: 0 };
        let element = size_of::<sys::rte_mbuf>() + usize::from(OWN_BUFFER);
        let private = size_of::<sys::rte_pktmbuf_pool_private>();
        let name = fresh_name();
        // SAFETY: the name is a string, copied by the call; no cache, no padding between objects.
        let pool = unsafe {
            let (element, private) = (element as c_uint, private as c_uint);
            sys::rte_mempool_create_empty(name.as_ptr(), count as c_uint, element, 0, private, socket, PACKED)
        };
        if pool.is_null() {
            // SAFETY: reads a thread-local number.
            return Err(failed(strerror(unsafe { sys::sg_errno() })));
        }
        let own = Own(pool);
        // SAFETY: a mempool of ours that is not populated yet. The memory is fresh and given to the pool, whose end unmaps it
        // (`unmap`); `room` is read within the call; `rte_pktmbuf_init` is DPDK's own for the objects of such a pool.
        unsafe {
            let header = (*pool).header_size as usize + (*pool).elt_size as usize + (*pool).trailer_size as usize;
            let bytes = (count * header).next_multiple_of(4096);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
            let memory = libc::mmap(null_mut(), bytes, access, kind, -1, 0);
            if memory == libc::MAP_FAILED {
                return Err(failed(std::io::Error::last_os_error().to_string()));
            }
            let set = sys::rte_mempool_set_ops_byname(pool, c"ring_mp_mc".as_ptr(), null_mut());
            sys::rte_pktmbuf_pool_init(pool, (&raw const room).cast_mut().cast());
            let address: *mut std::ffi::c_char = memory.cast();
            let made = match set {
                0 => {
                    sys::rte_mempool_populate_iova(pool, address, memory.addr() as u64, bytes, Some(unmap), null_mut())
                }
                error => error,
            };
            if made <= 0 {
                libc::munmap(memory, bytes);
            }
            if usize::try_from(made) != Ok(count) {
                return Err(failed(if made < 0 { strerror(made) } else { format!("{made} were made") }));
            }
            sys::rte_mempool_obj_iter(pool, Some(sys::rte_pktmbuf_init), null_mut());
        }
        Ok(own)
    }

    /// None yet.
    pub fn none() -> Own {
        Own(null_mut())
    }

    /// For queue set-up and allocation.
    pub fn pool(&self) -> *mut sys::rte_mempool {
        self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: the device that used it is closed: it holds this value. Null is ignored.
        unsafe { sys::rte_mempool_free(self.0) };
    }
}
