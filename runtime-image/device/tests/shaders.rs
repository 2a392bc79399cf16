//! Every WGSL kernel is valid as the browsers' and wgpu's own compiler judges it, needs no
//! more than what every device must have, and becomes Metal's language. It is not run here.

use naga::back::msl;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use petaflop_kernel::ir::{catalogue, print::wgsl};

#[test]
fn every_shader_is_valid_and_becomes_metal() {
    for kernel in catalogue() {
        let name = &kernel.name;
        let text = wgsl::print(&kernel);
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|e| panic!("{name}: {}\n{text}", e.emit_to_string(&text)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&text)));
        // Metal 2.0: macOS 10.13.
        let options = msl::Options { lang_version: (2, 0), ..Default::default() };
        let pipeline = msl::PipelineOptions::default();
        let (metal, _) = msl::write_string(&module, &info, &options, &pipeline)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(metal.contains("kernel void"), "{name}: {metal}");
        // WebGPU's default limits: 8 storage buffers, 16 KiB shared.
        assert!(kernel.buffers().len() <= 8, "{name}: {} buffers", kernel.buffers().len());
        let shared: u32 = module
            .global_variables
            .iter()
            .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
            .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
            .sum();
        assert!(shared <= 16_384, "{name}: {shared} bytes shared");
    }
}
