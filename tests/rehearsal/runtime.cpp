// A CUDA runtime without a GPU: it uses host memory, streams run their work immediately, and the
// kernels are those that tests/rehearsal/kernels_*.cpp build from their sources.  It replaces
// libcudart.so, so that torch's CUDA build and the host code of csrc/cuda run as on a GPU.
// rehearse.sh adds all missing functions; these return "not supported".
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "../emulator/tensor_map.h"
#include "kernels.h"

using espan::rehearsal::Arrays;
using espan::rehearsal::Make;
using espan::rehearsal::Work;

struct CUstream_st {
  unsigned long long id;
  CUgraph_st* graph;  // the graph being captured, or null
};
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};
struct CUevent_st {
  double milliseconds;
};

namespace {

constexpr size_t kPage = 4096;
// Properties of an H100.
constexpr int kSharedBytes = 232448, kSharedBytesOfSm = 233472, kReservedBytes = 1024, kSms = 132;

std::recursive_mutex mutex;  // protects everything below
std::map<const void*, std::string> kernels;
std::map<std::string, int> shared_allowed;
std::map<uintptr_t, size_t> allocated;
unsigned long long streams_made = 0;
CUstream_st default_streams[8];
CUstream_st* capturing = nullptr;

thread_local int device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaLaunchConfig_t configuration;

using Lock = std::lock_guard<std::recursive_mutex>;

int devices() {
  const char* count = std::getenv("ESPAN_REHEARSAL_GPUS");
  return count ? std::atoi(count) : 1;
}

cudaError_t fail(cudaError_t error, const std::string& why) {
  std::fprintf(stderr, "rehearsal: %s\n", why.c_str());
  return last_error = error;
}

CUstream_st* real(cudaStream_t stream) {
  const bool is_default =
      stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
  return is_default ? &default_streams[device] : stream;
}

// Runs the work now or, if the stream captures a graph, when the graph is launched.
cudaError_t enqueue(cudaStream_t stream, Work work) {
  if (CUgraph_st* graph = real(stream)->graph)
    graph->work.push_back(std::move(work));
  else
    work();
  return last_error;
}

// Waiting for any stream during a capture is an error.
cudaError_t synchronize(const char* what) {
  if (capturing == nullptr) return last_error;
  return fail(cudaErrorStreamCaptureUnsupported, std::string(what) + " during a capture");
}

const std::vector<Make>& makers() {
  static const std::vector<Make> all = [] {
    std::vector<Make> found;
    Dl_info here;
    dladdr(reinterpret_cast<void*>(&devices), &here);
    const std::string folder(here.dli_fname, std::strrchr(here.dli_fname, '/'));
    for (const char* name : {"tensor_cores", "frequency_loss", "gate"}) {
      const std::string file = folder + "/kernels_" + name + ".so";
      void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library == nullptr) std::fprintf(stderr, "rehearsal: %s\n", dlerror());
      if (library != nullptr) found.push_back(reinterpret_cast<Make>(dlsym(library, "make_work")));
    }
    return found;
  }();
  return all;
}

Arrays arrays() {
  Arrays all;
  for (const auto& [begin, bytes] : allocated) all.push_back({begin, begin + bytes});
  return all;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                   cudaStream_t stream) {
  const Lock lock(mutex);
  const std::string name = kernels[function];
  if (std::getenv("ESPAN_REHEARSAL_LAUNCHES"))
    std::fprintf(stderr, "launch %s: %u blocks of %u threads\n", name.c_str(), grid.x, block.x);
  if (name.find("spin_kernel") != std::string::npos) return cudaSuccess;  // torch.cuda._sleep
  if (grid.x == 0 || grid.y != 1 || grid.z != 1 || block.x == 0 || block.x > 1024)
    return fail(cudaErrorInvalidConfiguration, name + ": no such grid or block");
  if (shared > 48 << 10 && static_cast<int>(shared) > shared_allowed[name])
    return fail(cudaErrorInvalidValue, name + ": more shared memory than was asked for");
  for (const Make make : makers())
    if (const auto work = make(name.c_str(), grid.x, block.x, arguments, shared))
      return enqueue(stream, [=] {
        try {
          const Lock one_at_a_time(mutex);
          work(arrays());
        } catch (const std::exception& e) {
          fail(cudaErrorIllegalAddress, name + ": " + e.what());
        }
      });
  return fail(cudaErrorInvalidDeviceFunction, "there is no emulation of " + name);
}

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

CUresult context_state(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}
// For the emulator's copy_row: encodes boxes of 64 channels of a row, swizzled, and no others.
CUresult encode_tensor_map(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data,
                           const cuuint64_t* sizes, const cuuint64_t* strides,
                           const cuuint32_t* box, const cuuint32_t*, CUtensorMapInterleave,
                           CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                           CUtensorMapFloatOOBfill) {
  if (rank != 4 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B || box[0] != 64 || box[2] != 1 ||
      box[3] != 1)
    return CUDA_ERROR_NOT_SUPPORTED;
  espan::emulator::TensorMap made{static_cast<const unsigned char*>(data)};
  std::copy_n(sizes, 4, made.sizes);
  std::copy_n(strides, 3, made.strides);
  std::copy_n(box, 4, made.box);
  std::memcpy(map, &made, sizeof(made));
  return CUDA_SUCCESS;
}
CUresult no_such_function() { return CUDA_ERROR_NOT_SUPPORTED; }

}  // namespace

extern "C" {

// For host_ops.py: adds one of torch's own ops to a stream or its graph.
void rehearsal_enqueue(cudaStream_t stream, void (*call)()) {
  enqueue(stream, [call] { call(); });
}

// The functions that nvcc calls in every object file, and launches.

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  const Lock lock(mutex);
  kernels[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  configuration = {grid, block, shared, stream, nullptr, 0};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.gridDim;
  *block = configuration.blockDim;
  *shared = configuration.dynamicSmemBytes;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t stream) {
  return launch(kernel, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t stream) {
  return launch(function, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function,
                                void** arguments) {
  return launch(function, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes, c->stream);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const Lock lock(mutex);
  const bool bytes = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (value < 0 || value > (bytes ? kSharedBytes : 100))
    return fail(cudaErrorInvalidValue, kernels[function] + ": no such attribute");
  if (bytes) shared_allowed[kernels[function]] = value;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = attributes->binaryVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorName(cudaError_t) { return "an error of the rehearsal"; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the rehearsal, told above"; }

// Devices.

cudaError_t cudaGetDeviceCount(int* count) {
  *count = devices();
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* which) {
  *which = device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int which) {
  if (which < 0 || which >= devices()) return fail(cudaErrorInvalidDevice, "no such device");
  device = which;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {};
  std::strcpy(p->name, "rehearsal");
  p->totalGlobalMem = size_t{8} << 30;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = kSharedBytes;
  p->sharedMemPerMultiprocessor = kSharedBytesOfSm;
  p->multiProcessorCount = kSms;
  p->l2CacheSize = 50 << 20;
  p->major = 9;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const std::map<cudaDeviceAttr, int> known = {
      {cudaDevAttrMultiProcessorCount, kSms},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, kSharedBytes},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, kSharedBytesOfSm},
      {cudaDevAttrReservedSharedMemoryPerBlock, kReservedBytes},
      {cudaDevAttrComputeCapabilityMajor, 9},
  };
  const auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int which) {
  std::snprintf(id, length, "0000:%02d:00.0", which);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return synchronize("cudaDeviceSynchronize"); }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice which, unsigned* flags, int* active) {
  return context_state(which, flags, active);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const std::map<std::string, void*> known = {
      {"cuDevicePrimaryCtxGetState", reinterpret_cast<void*>(&context_state)},
      {"cuTensorMapEncodeTiled", reinterpret_cast<void*>(&encode_tensor_map)},
  };
  const auto entry = known.find(name);
  *function = entry == known.end() ? reinterpret_cast<void*>(&no_such_function) : entry->second;
  if (found != nullptr) *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// Memory: NaN at first, between inaccessible pages.

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const Lock lock(mutex);
  const size_t pages = (bytes + kPage - 1) / kPage * kPage;
  void* base =
      mmap(nullptr, pages + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return fail(cudaErrorMemoryAllocation, "out of memory");
  char* begin = static_cast<char*>(base) + kPage;
  mprotect(base, kPage, PROT_NONE);
  mprotect(begin + pages, kPage, PROT_NONE);
  std::memset(begin, 0xff, pages);
  allocated[reinterpret_cast<uintptr_t>(begin)] = bytes;
  *pointer = begin;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  const Lock lock(mutex);
  if (pointer == nullptr) return cudaSuccess;
  const auto found = allocated.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == allocated.end()) return fail(cudaErrorInvalidValue, "this was not allocated");
  const size_t pages = (found->second + kPage - 1) / kPage * kPage;
  munmap(static_cast<char*>(pointer) - kPage, pages + 2 * kPage);
  allocated.erase(found);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  *pointer = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{8} << 30;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const Lock lock(mutex);
  *attributes = {};
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const auto next = allocated.upper_bound(address);
  if (next == allocated.begin()) return cudaSuccess;
  const auto& [begin, bytes] = *std::prev(next);
  if (address < begin + bytes) attributes->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes,
                                cudaStream_t stream) {
  return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memset(to, value, bytes); });
}

// Streams, events and graphs.

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  const Lock lock(mutex);
  *stream = new CUstream_st{++streams_made, nullptr};
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return synchronize("cudaStreamQuery"); }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return synchronize("cudaStreamSynchronize"); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = real(stream)->graph ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  if (graph != nullptr) *graph = real(stream)->graph;
#else
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                        unsigned long long* id, cudaGraph_t* graph,
                                        const cudaGraphNode_t**, size_t*) {
  if (graph != nullptr) *graph = real(stream)->graph;
#endif
  if (id != nullptr) *id = real(stream)->id;
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(mutex);
  if (real(stream)->id == 0)
    return fail(cudaErrorStreamCaptureUnsupported, "the default stream cannot capture");
  capturing = real(stream);
  capturing->graph = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(mutex);
  *graph = std::exchange(real(stream)->graph, nullptr);
  capturing = nullptr;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph->work.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long) {
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  for (const Work& work : executable->work) work();
  return last_error;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{0};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->milliseconds = now();
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return synchronize("cudaEventSynchronize"); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = static_cast<float>(end->milliseconds - begin->milliseconds);
  return cudaSuccess;
}

}  // extern "C"
