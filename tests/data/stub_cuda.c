/* A libcuda.so.1 that computes nothing: every handle has bits above 32, and comes back as it was given or is refused.
   test_runtime_cuda.py compiles it, so that the prototypes meet a real C library. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef unsigned long long Pointer;

#define HANDLE(n) ((void *)(0x7eee00000120ULL + (n)))
#define EXPECT(condition) return (condition) ? 0 : 400
enum { CONTEXT, STREAM, EVENT, GRAPH, EXECUTABLE };

Result cuInit(unsigned flags) { EXPECT(flags == 0); }
Result cuDriverGetVersion(int *version) { *version = 13010; return 0; }
Result cuDeviceGetCount(int *count) { *count = 1; return 0; }
Result cuDeviceGet(int *device, int index) { *device = index; return index ? 101 : 0; }
Result cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stub", size); return device; }
Result cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)24 << 30; return device; }
Result cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 8 : 9; return device; }
Result cuGetErrorString(Result status, const char **text) { *text = "the stub refuses"; return status == 0; }

Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = HANDLE(CONTEXT); return device; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return device; }
Result cuCtxPushCurrent_v2(void *context) { EXPECT(context == HANDLE(CONTEXT)); }
Result cuCtxPopCurrent_v2(void **context) { *context = HANDLE(CONTEXT); return 0; }

Result cuMemAlloc_v2(Pointer *address, size_t size) {
    if (size > (size_t)1 << 40) return 2;
    *address = (Pointer)calloc(1, size);
    return 0;
}
Result cuMemFree_v2(Pointer address) { free((void *)address); return 0; }
Result cuMemAllocHost_v2(void **address, size_t size) { *address = calloc(1, size); return 0; }
Result cuMemFreeHost(void *address) { free(address); return 0; }
Result cuPointerGetAttribute(void *value, int which, Pointer address) {
    *(int *)value = 3;
    EXPECT(which == 9 && address);
}

static Result move(void *target, const void *source, size_t size, void *stream) {
    memcpy(target, source, size);
    EXPECT(stream == HANDLE(STREAM));
}
Result cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t size, void *stream) {
    return move((void *)to, from, size, stream);
}
Result cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t size, void *stream) {
    return move(to, (void *)from, size, stream);
}
Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t size, void *stream) {
    return move((void *)to, (void *)from, size, stream);
}

Result cuStreamCreate(void **stream, unsigned flags) { *stream = HANDLE(STREAM); EXPECT(flags == 1); }
Result cuStreamDestroy_v2(void *stream) { EXPECT(stream == HANDLE(STREAM)); }
Result cuStreamSynchronize(void *stream) { EXPECT(stream == HANDLE(STREAM)); }
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    EXPECT(stream == HANDLE(STREAM) && event == HANDLE(EVENT) && flags == 0);
}
Result cuEventCreate(void **event, unsigned flags) { *event = HANDLE(EVENT); EXPECT(flags == 2); }
Result cuEventRecord(void *event, void *stream) { EXPECT(event == HANDLE(EVENT) && stream == (void *)2); }
Result cuEventDestroy_v2(void *event) { EXPECT(event == HANDLE(EVENT)); }

Result cuStreamBeginCapture_v2(void *stream, int mode) { EXPECT(stream == HANDLE(STREAM) && mode == 1); }
Result cuStreamEndCapture(void *stream, void **graph) { *graph = HANDLE(GRAPH); EXPECT(stream == HANDLE(STREAM)); }
Result cuGraphInstantiateWithFlags(void **executable, void *graph, Pointer flags) {
    *executable = HANDLE(EXECUTABLE);
    EXPECT(graph == HANDLE(GRAPH) && flags == 0);
}
Result cuGraphLaunch(void *executable, void *stream) {
    EXPECT(executable == HANDLE(EXECUTABLE) && stream == HANDLE(STREAM));
}
Result cuGraphExecDestroy(void *executable) { EXPECT(executable == HANDLE(EXECUTABLE)); }
Result cuGraphDestroy(void *graph) { EXPECT(graph == HANDLE(GRAPH)); }
