// A driver and its compiler with the names of CUDA's (or, with -DHIP, of HIP's), whose device is this
// processor. It knows one kernel, linear_f32, which it computes from the arguments that it is launched with.
// It is strict where drivers are: a context must be current, and addresses must be its own.
//
// -DNO_LAUNCH leaves a function out; -DFAILS=n makes initialisation fail; -DWRONG gives a wrong product.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *handle;
typedef uint64_t address;

#define MEMORY (1 << 20)
enum { INVALID = 1, NO_MEMORY = 2, NO_CONTEXT = 201, BAD_CODE = 200, NOT_FOUND = 500 };

static __thread int current;
static size_t used;
static int modules, streams, compiled;
static const char CODE[] = "code of the fake";

#ifdef HIP
#define D(cuda, hip) hip
#else
#define D(cuda, hip) cuda
#endif
#define C(name) D(nvrtc##name, hiprtc##name)
#define HERE if (!current) return NO_CONTEXT

#ifndef FAILS
#define FAILS 0
#endif

// What the test asks about: bytes, modules and streams that were not given back, and programs compiled.
int fake_left(void) { return (int)used + modules + streams; }
int fake_compiled(void) { return compiled; }

int D(cuInit, hipInit)(unsigned flags) { return flags ? INVALID : FAILS; }
int D(cuDeviceGetName, hipDeviceGetName)(char *name, int len, int device) {
    snprintf(name, len, "Fake %d", device);
    return 0;
}
int D(cuDriverGetVersion, hipRuntimeGetVersion)(int *version) { return *version = 12090, 0; }
#ifdef HIP
int hipSetDevice(int device) { return current = device == 0, 0; }
int hipDeviceGetPCIBusId(char *id, int len, int device) {
    (void)device;
    return snprintf(id, len, "0000:C1:00.0"), 0;
}
const char *hipGetErrorString(int error) { return error == 100 ? "no device detected" : "an error"; }
#else
int cuDeviceGet(int *device, int at) { return *device = at, 0; }
int cuDeviceGetAttribute(int *value, int what, int device) {
    (void)device;
    return *value = what == 75 ? 9 : 0, what == 75 || what == 76 ? 0 : INVALID;
}
int cuDevicePrimaryCtxRetain(handle *context, int device) { return *context = &current, device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device; }
int cuCtxSetCurrent(handle context) { return current = context == &current || context != 0, 0; }
int cuGetErrorString(int error, const char **text) {
    return *text = error == 100 ? "no device detected" : "an error", 0;
}
#endif

int D(cuMemGetInfo_v2, hipMemGetInfo)(size_t *available, size_t *total) {
    HERE;
    return *available = MEMORY - used, *total = MEMORY, 0;
}
int D(cuMemAlloc_v2, hipMalloc)(address *at, size_t bytes) {
    HERE;
    if (bytes > MEMORY - used) return NO_MEMORY;
    size_t *block = malloc(bytes + 16);
    memset(block, 0xff, bytes + 16);
    *block = bytes;
    used += bytes;
    return *at = (address)(block + 2), 0;
}
int D(cuMemFree_v2, hipFree)(address at) {
    HERE;
    size_t *block = (size_t *)at - 2;
    used -= *block;
    free(block);
    return 0;
}
int D(cuMemsetD32Async, hipMemsetD32Async)(address to, unsigned word, size_t count, handle stream) {
    HERE;
    for (size_t i = 0; i < count; i++) ((unsigned *)to)[i] = word;
    return stream ? 0 : INVALID;
}
int D(cuMemcpyHtoDAsync_v2, hipMemcpyHtoDAsync)(address to, const void *from, size_t bytes, handle stream) {
    HERE;
    return memcpy((void *)to, from, bytes), stream ? 0 : INVALID;
}
int D(cuMemcpyDtoHAsync_v2, hipMemcpyDtoHAsync)(void *to, address from, size_t bytes, handle stream) {
    HERE;
    return memcpy(to, (void *)from, bytes), stream ? 0 : INVALID;
}
int D(cuModuleLoadData, hipModuleLoadData)(handle *module, const void *code) {
    HERE;
    if (memcmp(code, CODE, sizeof CODE)) return BAD_CODE;
    return modules++, *module = &modules, 0;
}
int D(cuModuleGetFunction, hipModuleGetFunction)(handle *function, handle module, const char *name) {
    HERE;
    if (strcmp(name, "linear_f32")) return NOT_FOUND;
    return *function = module, 0;
}
int D(cuModuleUnload, hipModuleUnload)(handle module) { return module == &modules ? modules--, 0 : INVALID; }
int D(cuStreamCreate, hipStreamCreateWithFlags)(handle *stream, unsigned flags) {
    HERE;
    return streams++, *stream = &streams, flags == 1 ? 0 : INVALID;
}
int D(cuStreamDestroy_v2, hipStreamDestroy)(handle stream) { return stream == &streams ? streams--, 0 : INVALID; }
int D(cuStreamSynchronize, hipStreamSynchronize)(handle stream) {
    HERE;
    return stream == &streams ? 0 : INVALID;
}
#ifndef NO_LAUNCH
int D(cuLaunchKernel, hipModuleLaunchKernel)(handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                             unsigned by, unsigned bz, unsigned shared, handle stream,
                                             void **arguments, void **extra) {
    HERE;
    const unsigned *sizes = arguments[0], m = sizes[0], n = sizes[1], depth = sizes[2];
    if (function != &modules || stream != &streams || shared || extra || bx * by * bz != 256) return INVALID;
    if (gx != (n + 63) / 64 || gy != (m + 63) / 64 || gz != 1) return INVALID;
    const float *x = *(float **)arguments[1], *w = *(float **)arguments[2];
    float *y = *(float **)arguments[3];
    for (unsigned i = 0; i < m; i++)
        for (unsigned j = 0; j < n; j++) {
            float sum = 0;
            for (unsigned k = 0; k < depth; k++) sum += x[i * depth + k] * w[j * depth + k];
#ifdef WRONG
            sum += 1;
#endif
            y[i * n + j] = sum;
        }
    return 0;
}
#endif

int C(Version)(int *major, int *minor) { return *major = 12, *minor = 9, 0; }
const char *C(GetErrorString)(int error) { return error == 6 ? "compilation" : "an error"; }
int C(CreateProgram)(handle *program, const char *source, const char *name, int headers, const char *const *texts,
                     const char *const *names) {
    if (!name || headers || texts || names) return INVALID;
    return *program = strdup(source), 0;
}
int C(CompileProgram)(handle program, int count, const char *const *options) {
    compiled++;
    if (!strstr(options[0], D("=sm_90", "=gfx942")) || count < 2) return INVALID;
    return strstr(program, "linear_f32(") ? 0 : 6;
}
int C(GetProgramLogSize)(handle program, size_t *bytes) { return *bytes = sizeof "knows one kernel", program ? 0 : INVALID; }
int C(GetProgramLog)(handle program, char *log) { return strcpy(log, "knows one kernel"), program ? 0 : INVALID; }
int D(nvrtcGetCUBINSize, hiprtcGetCodeSize)(handle program, size_t *bytes) { return *bytes = sizeof CODE, program ? 0 : INVALID; }
int D(nvrtcGetCUBIN, hiprtcGetCode)(handle program, char *code) { return memcpy(code, CODE, sizeof CODE), program ? 0 : INVALID; }
int C(DestroyProgram)(handle *program) { return free(*program), *program = 0, 0; }
