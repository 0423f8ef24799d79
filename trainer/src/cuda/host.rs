//! The processor in the GPU's place, for the tests: the same kernels, compiled for it, and
//! convolutions and products by their formulas.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::process::Command;
use std::sync::OnceLock;

use super::device::{Address, Arg, Convolution, CudaError, Device, Linear, Pass, Product, Result};
use super::sweeps;
use crate::device::Precision;
use crate::method::byol::StepReport;

type Launch = unsafe extern "C" fn(*const c_char, *const u32, *const u32, *mut *mut c_void) -> c_int;

struct Compiled {
    launch: Launch,
    _library: libloading::Library,
}

/// The kernels, compiled once by the system's C++ compiler; `None` where there is none.
fn compiled() -> Option<&'static Compiled> {
    static COMPILED: OnceLock<Option<Compiled>> = OnceLock::new();
    COMPILED.get_or_init(compile).as_ref()
}

fn compile() -> Option<Compiled> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("skipped: no C++ compiler ({compiler}), which the kernels' tests need");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut source = String::from("#include \"host.h\"\n");
    for (name, text) in sweeps::SOURCES {
        std::fs::write(dir.path().join(name), text).unwrap();
        source += &format!("#include \"{name}\"\n");
    }
    std::fs::write(dir.path().join("common.cuh"), sweeps::COMMON).unwrap();
    std::fs::write(dir.path().join("host.h"), include_str!("kernels/host.h")).unwrap();
    source += "extern \"C\" int launch(const char* name, const unsigned* grid, const unsigned* block, void** args) {\n";
    for name in sweeps::names() {
        source += &format!(
            "if (!strcmp(name, \"{name}\")) {{ host::run(host::Call<{name}>::call, grid, block, args); return 0; }}\n"
        );
    }
    source += "return 1;\n}\n";
    let (file, library) = (dir.path().join("all.cpp"), dir.path().join("kernels.so"));
    std::fs::write(&file, source).unwrap();
    let flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Werror", "-Wno-unknown-pragmas"];
    let output = Command::new(&compiler).args(flags).arg(&file).arg("-o").arg(&library).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: the library was made here; `launch` has that type.
    unsafe {
        let library = libloading::Library::new(&library).unwrap();
        let launch = *library.get::<Launch>(b"launch").unwrap();
        Some(Compiled { launch, _library: library })
    }
}

/// The processor as a device.
pub struct Host {
    precision: Precision,
    compiled: &'static Compiled,
    /// Memory by address.
    memory: RefCell<HashMap<Address, Vec<u128>>>,
    views: [Cell<Address>; 2],
    turn: Cell<usize>,
    reports: RefCell<Vec<StepReport>>,
}

impl Host {
    /// The processor; `None` without a C++ compiler.
    pub fn new(precision: Precision) -> Option<Self> {
        Some(Self {
            precision,
            compiled: compiled()?,
            memory: RefCell::default(),
            views: Default::default(),
            turn: Cell::new(0),
            reports: RefCell::default(),
        })
    }

    fn check(&self, at: Address, bytes: usize) {
        let memory = self.memory.borrow();
        let fits = |start: &Address, data: &Vec<u128>| {
            (*start..=*start + 16 * data.len() as u64).contains(&(at + bytes as u64)) && at >= *start
        };
        assert!(memory.iter().any(|(start, data)| fits(start, data)), "{bytes} bytes at {at:#x}");
    }

    /// The values of an array, wide.
    pub fn get(&self, at: Address, count: usize, wide: bool) -> Vec<f32> {
        let narrow = self.precision == Precision::Bf16 && !wide;
        self.check(at, count * if narrow { 2 } else { 4 });
        // SAFETY: checked.
        unsafe {
            if narrow {
                let bits = std::slice::from_raw_parts(at as *const u16, count);
                bits.iter().map(|b| f32::from_bits(u32::from(*b) << 16)).collect()
            } else {
                std::slice::from_raw_parts(at as *const f32, count).to_vec()
            }
        }
    }

    /// Writes an array's values.
    pub fn put(&self, at: Address, values: &[f32], wide: bool) {
        let narrow = self.precision == Precision::Bf16 && !wide;
        self.check(at, values.len() * if narrow { 2 } else { 4 });
        // SAFETY: checked.
        unsafe {
            if narrow {
                let bits = std::slice::from_raw_parts_mut(at as *mut u16, values.len());
                bits.iter_mut().zip(values).for_each(|(b, v)| *b = half::bf16::from_f32(*v).to_bits());
            } else {
                std::slice::from_raw_parts_mut(at as *mut f32, values.len()).copy_from_slice(values);
            }
        }
    }
}

/// Calls `f` with every (x, w, y) index that multiply in a convolution.
fn every_product(c: &Convolution, mut f: impl FnMut(usize, usize, usize)) {
    let (height, width, pad) = (c.output_size(c.height), c.output_size(c.width), c.kernel / 2);
    for pixel in 0..c.images * height * width {
        let (image, oy, ox) = (pixel / (height * width), pixel / width % height, pixel % width);
        for tap in 0..c.kernel * c.kernel {
            let iy = (oy * c.stride + tap / c.kernel).wrapping_sub(pad);
            let ix = (ox * c.stride + tap % c.kernel).wrapping_sub(pad);
            if iy >= c.height || ix >= c.width {
                continue;
            }
            for co in 0..c.cout {
                for ci in 0..c.cin {
                    let x = ((image * c.height + iy) * c.width + ix) * c.cin + ci;
                    f(x, (co * c.kernel * c.kernel + tap) * c.cin + ci, pixel * c.cout + co);
                }
            }
        }
    }
}

impl Device for Host {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn multiprocessors(&self) -> usize {
        2
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        // Not zero: what is read before it is written must show.
        let data = vec![u128::MAX; bytes.div_ceil(16)];
        let at = data.as_ptr() as Address;
        self.memory.borrow_mut().insert(at, data);
        Ok(at)
    }

    fn release(&self, at: Address) {
        assert!(self.memory.borrow_mut().remove(&at).is_some());
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        self.check(at, bytes);
        // SAFETY: checked.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn write(&self, at: Address, from: &[f32]) -> Result<()> {
        self.put(at, from, true);
        Ok(())
    }

    unsafe fn read(&self, at: Address, to: &mut [f32]) -> Result<()> {
        to.copy_from_slice(&self.get(at, to.len(), true));
        Ok(())
    }

    unsafe fn launch(&self, kernel: &str, grid: [usize; 3], block: [usize; 3], args: &[Arg]) -> Result<()> {
        assert!(block.iter().product::<usize>() <= 1024 && grid[1] <= 65_535 && grid[2] <= 65_535);
        let name = CString::new(kernel).unwrap();
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let sizes = |v: [usize; 3]| v.map(|v| v as u32);
        // SAFETY: the caller gives the kernel its arguments.
        let unknown = unsafe {
            (self.compiled.launch)(
                name.as_ptr(),
                sizes(grid).as_ptr(),
                sizes(block).as_ptr(),
                pointers.as_mut_ptr(),
            )
        };
        if unknown != 0 {
            return Err(CudaError(format!("no kernel {kernel}")));
        }
        Ok(())
    }

    unsafe fn convolve(&self, c: &Convolution, pass: Pass, x: Address, w: Address, y: Address) -> Result<()> {
        let pixels = c.output_size(c.height) * c.output_size(c.width);
        let counts = [
            c.images * c.height * c.width * c.cin,
            c.cout * c.kernel * c.kernel * c.cin,
            c.images * pixels * c.cout,
        ];
        let get = |i: usize, at| self.get(at, counts[i], false);
        match pass {
            Pass::Forward => {
                let (x, w, mut out) = (get(0, x), get(1, w), vec![0f32; counts[2]]);
                every_product(c, |xi, wi, yi| out[yi] += x[xi] * w[wi]);
                self.put(y, &out, false);
            }
            Pass::Input => {
                let (w, y, mut out) = (get(1, w), get(2, y), vec![0f32; counts[0]]);
                every_product(c, |xi, wi, yi| out[xi] += y[yi] * w[wi]);
                self.put(x, &out, false);
            }
            Pass::Weight => {
                let (x, y, mut out) = (get(0, x), get(2, y), vec![0f32; counts[1]]);
                every_product(c, |xi, wi, yi| out[wi] += x[xi] * y[yi]);
                self.put(w, &out, false);
            }
        }
        Ok(())
    }

    unsafe fn multiply(&self, of: Linear, pass: Pass, data: Product) -> Result<()> {
        let Linear { rows, inputs, outputs } = of;
        let every = |f: &mut dyn FnMut(usize, usize, usize)| {
            for r in 0..rows {
                for i in 0..inputs {
                    (0..outputs).for_each(|o| f(r * inputs + i, i * outputs + o, r * outputs + o));
                }
            }
        };
        let (xs, ws, ys) = (rows * inputs, inputs * outputs, rows * outputs);
        match pass {
            Pass::Forward => {
                let (x, w) = (self.get(data.x, xs, false), self.get(data.w, ws, false));
                let mut out = vec![0f32; ys];
                every(&mut |xi, wi, yi| out[yi] += x[xi] * w[wi]);
                self.put(data.y, &out, data.wide);
            }
            Pass::Input => {
                let (w, y) = (self.get(data.w, ws, false), self.get(data.y, ys, false));
                let mut out = vec![0f32; xs];
                every(&mut |xi, wi, yi| out[xi] += y[yi] * w[wi]);
                self.put(data.x, &out, false);
            }
            Pass::Weight => {
                let (x, y) = (self.get(data.x, xs, false), self.get(data.y, ys, false));
                let mut out = if data.add { self.get(data.w, ws, true) } else { vec![0f32; ws] };
                every(&mut |xi, wi, yi| out[wi] += x[xi] * y[yi]);
                self.put(data.w, &out, true);
            }
        }
        Ok(())
    }

    fn send_views(&self, view1: &[f32], view2: &[f32]) -> Result<Address> {
        let slot = &self.views[self.turn.replace(1 - self.turn.get())];
        if slot.get() != 0 {
            self.release(slot.get());
        }
        let at = self.allocate(4 * (view1.len() + view2.len()))?;
        slot.set(at);
        self.put(at, view1, true);
        if !view2.is_empty() {
            self.put(at + 4 * view1.len() as u64, view2, true);
        }
        Ok(at)
    }

    fn views_read(&self) -> Result<()> {
        Ok(())
    }

    unsafe fn send_report(&self, at: Address) -> Result<()> {
        let values = self.get(at, 2, true);
        let report = StepReport { loss: f64::from(values[0]), representation_std: f64::from(values[1]) };
        self.reports.borrow_mut().push(report);
        Ok(())
    }

    fn reports(&self, _: bool) -> Result<Vec<StepReport>> {
        Ok(self.reports.take())
    }
}
