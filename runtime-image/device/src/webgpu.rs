//! Vulkan and Metal, through wgpu.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use petaflop_kernel::ir::{Kernel, Launch, print::wgsl};
use petaflop_plan::Numerics;
use wgpu::{
    Adapter, Backends, BindGroupLayout, BufferDescriptor, BufferUsages, CommandEncoder,
    ComputePipeline, ErrorFilter, PollType,
};

use crate::device::{Device, DeviceError, View, operands, within};

/// How long one stream may take before its device counts as lost.
const PATIENCE: Duration = Duration::from_secs(120);

/// A device behind Vulkan or Metal.
pub struct WebGpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    name: String,
    /// Most bytes of one buffer that a kernel reads or writes.
    most: u64,
    memory: Option<u64>,
    pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
}

struct Pipeline {
    pipeline: ComputePipeline,
    layout: BindGroupLayout,
}

/// Memory of a [`WebGpu`].
#[derive(Debug)]
pub struct Buffer {
    buffer: wgpu::Buffer,
    words: usize,
}

/// The result of a future that only reports what already happened.
fn now<F: Future>(device: Option<&wgpu::Device>, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return result;
        }
        match device {
            Some(device) => drop(device.poll(PollType::Poll)),
            None => std::thread::yield_now(),
        }
    }
}

/// Bytes of so many words.
fn bytes(words: usize) -> u64 {
    words as u64 * 4
}

fn binding(View { buffer, at, words }: View<'_, Buffer>) -> wgpu::BindingResource<'_> {
    wgpu::BindingResource::Buffer(wgpu::BufferBinding {
        buffer: &buffer.buffer,
        offset: bytes(at),
        size: std::num::NonZero::new(bytes(words)),
    })
}

/// Refuses a driver that allows a group less than the printed kernels take.
fn enough(limits: &wgpu::Limits) -> Result<(), String> {
    let allowed = [
        ("storage buffers", limits.max_storage_buffers_per_shader_stage, 8),
        ("threads a group", limits.max_compute_invocations_per_workgroup, 256),
        ("bytes shared in a group", limits.max_compute_workgroup_storage_size, 16 << 10),
    ];
    match allowed.into_iter().find(|(_, most, least)| most < least) {
        None => Ok(()),
        Some((what, most, least)) => {
            Err(format!("its driver allows {most} {what}, and kernels take {least}: update it"))
        }
    }
}

fn lost(problem: impl std::fmt::Display) -> DeviceError {
    DeviceError::Lost(problem.to_string())
}

impl WebGpu {
    /// The first device that the drivers list. `emulated`: also one that a processor
    /// emulates, which is never what somebody wants who did not ask for it. `memory`: bytes that
    /// the device of this name has, which neither Vulkan nor Metal tells here.
    ///
    /// # Errors
    /// [`DeviceError::None`], with what was seen.
    pub fn open(
        emulated: bool,
        memory: impl Fn(&str, bool) -> Option<u64>,
    ) -> Result<WebGpu, DeviceError> {
        let backends = Backends::VULKAN | Backends::METAL;
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends,
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapters = now(None, instance.enumerate_adapters(backends));
        let mut reasons = vec![];
        for adapter in adapters {
            let info = adapter.get_info();
            let is_emulated = info.device_type == wgpu::DeviceType::Cpu;
            if is_emulated && !emulated {
                reasons.push(format!("`{}` is this processor, emulating a device", info.name));
                continue;
            }
            match WebGpu::of(&adapter) {
                Ok(device) => {
                    return Ok(WebGpu { memory: memory(&info.name, is_emulated), ..device });
                }
                Err(problem) => reasons.push(format!("{}: {problem}", info.name)),
            }
        }
        if reasons.is_empty() {
            reasons.push("neither Vulkan nor Metal lists a device".into());
        }
        Err(DeviceError::None(reasons.join("; ")))
    }

    fn of(adapter: &Adapter) -> Result<WebGpu, DeviceError> {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        enough(&limits).map_err(DeviceError::None)?;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("petaflop"),
            required_limits: limits.clone(),
            ..Default::default()
        };
        let (device, queue) = now(None, adapter.request_device(&descriptor))
            .map_err(|e| DeviceError::None(e.to_string()))?;
        Ok(WebGpu {
            device,
            queue,
            name: format!("{} ({}, {})", info.name, info.backend, info.driver_info),
            most: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            memory: None,
            pipelines: Mutex::default(),
        })
    }

    /// What the driver said to `f`.
    fn asking<T>(&self, filter: ErrorFilter, f: impl FnOnce() -> T) -> Result<T, String> {
        let scope = self.device.push_error_scope(filter);
        let result = f();
        match now(Some(&self.device), scope.pop()) {
            None => Ok(result),
            Some(error) => Err(error.to_string()),
        }
    }

    fn pipeline(&self, kernel: &Kernel) -> Result<Arc<Pipeline>, DeviceError> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines.get(&kernel.name) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(
            self.asking(ErrorFilter::Validation, || self.compile(kernel))
                .map_err(|log| DeviceError::Compile { kernel: kernel.name.clone(), log })?,
        );
        pipelines.insert(kernel.name.clone(), pipeline.clone());
        Ok(pipeline)
    }

    fn compile(&self, kernel: &Kernel) -> Pipeline {
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&kernel.name),
            source: wgpu::ShaderSource::Wgsl(wgsl::print(kernel).into()),
        });
        let entries: Vec<_> = (0..=kernel.buffers().len() as u32)
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding {
                        0 => wgpu::BufferBindingType::Uniform,
                        _ => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&kernel.name),
            entries: &entries,
        });
        let whole = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&kernel.name),
            layout: Some(&whole),
            module: &module,
            entry_point: Some(&kernel.name),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Kernels write what they share before they read it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        Pipeline { pipeline, layout }
    }

    fn allocate(&self, bytes: u64, usage: BufferUsages) -> Result<wgpu::Buffer, DeviceError> {
        let descriptor =
            BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
        self.asking(ErrorFilter::OutOfMemory, || self.device.create_buffer(&descriptor))
            .map_err(|_| DeviceError::OutOfMemory { bytes })
    }

    fn wait(&self) -> Result<(), DeviceError> {
        let wait = PollType::Wait { submission_index: None, timeout: Some(PATIENCE) };
        self.device.poll(wait).map(drop).map_err(lost)
    }
}

impl Device for WebGpu {
    type Buffer = Buffer;
    type Stream = CommandEncoder;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn numerics(&self) -> Numerics {
        Numerics::Wgsl
    }

    fn memory(&self) -> Option<u64> {
        self.memory
    }

    fn buffer(&self, words: usize) -> Result<Buffer, DeviceError> {
        let bytes = (words.max(1) * 4) as u64;
        if bytes > self.most {
            return Err(DeviceError::TooLarge { bytes, most: self.most });
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        Ok(Buffer { buffer: self.allocate(bytes, usage)?, words })
    }

    fn whole<'a>(&self, buffer: &'a Buffer) -> View<'a, Buffer> {
        View { buffer, at: 0, words: buffer.words }
    }

    fn write(&self, buffer: &mut Buffer, at: usize, words: &[u32]) -> Result<(), DeviceError> {
        within("write", at, words.len(), buffer.words)?;
        self.queue.write_buffer(&buffer.buffer, bytes(at), bytemuck::cast_slice(words));
        Ok(())
    }

    fn read(&self, View { buffer, at, words }: View<'_, Buffer>) -> Result<Vec<u32>, DeviceError> {
        within("read", at, words, buffer.words)?;
        let (at, bytes) = (bytes(at), bytes(words));
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let copy = self.allocate(bytes.max(4), usage)?;
        let mut stream = self.stream();
        stream.copy_buffer_to_buffer(&buffer.buffer, at, &copy, 0, bytes.max(4));
        self.queue.submit([stream.finish()]);
        let (done, mapped) = std::sync::mpsc::channel();
        copy.map_async(wgpu::MapMode::Read, .., move |result| drop(done.send(result)));
        self.wait()?;
        mapped.try_recv().map_err(lost)?.map_err(lost)?;
        let range = copy.get_mapped_range(..bytes.max(4)).map_err(lost)?;
        Ok(bytemuck::pod_collect_to_vec(&range[..bytes as usize]))
    }

    fn stream(&self) -> CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None })
    }

    fn launch(
        &self,
        stream: &mut CommandEncoder,
        kernel: &Kernel,
        launch: &Launch,
        buffers: &[(&str, View<'_, Buffer>)],
    ) -> Result<(), DeviceError> {
        let operands = operands(kernel, launch, buffers, |buffer| buffer.words)?;
        let groups = kernel.groups(launch)?;
        if groups.contains(&0) {
            return Ok(());
        }
        let pipeline = self.pipeline(kernel)?;
        let parameters = kernel.parameters(launch);
        let usage = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let uniform = self.allocate((parameters.len() * 4) as u64, usage)?;
        self.queue.write_buffer(&uniform, 0, bytemuck::cast_slice(&parameters));
        let entries: Vec<_> = std::iter::once(uniform.as_entire_binding())
            .chain(operands.into_iter().map(|(_, view)| binding(view)))
            .zip(0..)
            .map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&kernel.name),
            layout: &pipeline.layout,
            entries: &entries,
        });
        let mut pass = stream.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(&kernel.name),
            timestamp_writes: None,
        });
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        Ok(())
    }

    fn finish(&self, stream: CommandEncoder) -> Result<(), DeviceError> {
        self.asking(ErrorFilter::Validation, || self.queue.submit([stream.finish()]))
            .map_err(lost)?;
        self.wait()
    }
}

#[cfg(test)]
mod tests {
    use super::enough;

    #[test]
    fn an_old_driver_is_told_what_it_lacks() {
        assert_eq!(enough(&wgpu::Limits::default()), Ok(()));
        let old = wgpu::Limits { max_storage_buffers_per_shader_stage: 4, ..Default::default() };
        let refused = enough(&old).expect_err("kernels bind more");
        assert!(refused.contains("4 storage buffers, and kernels take 8"), "{refused}");
    }
}
