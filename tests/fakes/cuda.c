/* A CUDA driver without a GPU, for tests: device memory is host memory, a stream runs what it is given at once, and every
 * object made is counted until it is freed. fake_fail makes a call fail; fake_enqueue is how a fake engine joins a stream.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FAILED(name) (strcmp(name, failing) == 0 && skipped-- == 0)
#define CHECK(name) do { if (FAILED(name)) return failure; } while (0)
enum { OK = 0, OUT_OF_MEMORY = 2, INVALID_VALUE = 1, INVALID_CONTEXT = 201, CAPTURE_INVALIDATED = 901, MOST = 64 };

typedef void (*Work)(void);
typedef struct { int count; Work work[MOST]; } Graph;
typedef struct { Graph *capture; int spoilt; } Stream;
typedef struct { double time; int recorded; } Event;
typedef struct { size_t size; } Header; /* before each allocation; 16 bytes with its padding */

static char failing[64];
static int failure, skipped, live, launches, contexts;
static size_t used, capacity = (size_t)1 << 32;
static __thread void *current; /* context of this thread */

int fake_live(void) { return live + contexts; }
int fake_launches(void) { return launches; }
void fake_capacity(size_t bytes) { capacity = bytes; }
void fake_fail(const char *name, int after, int code) {
    strncpy(failing, name, sizeof failing - 1), skipped = after, failure = code;
}
void fake_enqueue(Stream *stream, Work work) {
    if (!stream->capture) work();
    else if (stream->capture->count < MOST) stream->capture->work[stream->capture->count++] = work;
}
void fake_spoil_capture(Stream *stream) { stream->spoilt = 1; }

int cuInit(unsigned flags) { CHECK("cuInit"); return flags ? INVALID_VALUE : OK; }
int cuDriverGetVersion(int *version) { *version = 12060; return OK; }
int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : "made to fail";
    return OK;
}
int cuDeviceGet(int *device, int ordinal) { CHECK("cuDeviceGet"); *device = ordinal; return OK; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Fake GPU", size); return device; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 6 : -1;
    return device;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    CHECK("cuDevicePrimaryCtxRetain");
    *context = &contexts, contexts++;
    return device;
}
int cuDevicePrimaryCtxRelease_v2(int device) { contexts--; return device; }
int cuCtxSetCurrent(void *context) {
    current = context;
    return !context || context == &contexts ? OK : INVALID_VALUE;
}
int cuMemGetInfo_v2(size_t *available, size_t *total) { *available = capacity - used, *total = capacity; return OK; }

static int allocate(void **address, size_t size) {
    if (used + size > capacity) return OUT_OF_MEMORY;
    Header *header = malloc(16 + size);
    header->size = size, used += size, live++;
    *address = (char *)header + 16;
    memset(*address, 0xA5, size); /* nobody may count on zeros */
    return OK;
}
static int release(void *address) {
    if (!current) return INVALID_CONTEXT;
    Header *header = (Header *)((char *)address - 16);
    used -= header->size, live--;
    memset(address, 0x5A, header->size);
    free(header);
    return OK;
}
int cuMemAlloc_v2(void **address, size_t size) { CHECK("cuMemAlloc_v2"); return allocate(address, size); }
int cuMemAllocHost_v2(void **address, size_t size) { CHECK("cuMemAllocHost_v2"); return allocate(address, size); }
int cuMemFree_v2(void *address) { return release(address); }
int cuMemFreeHost(void *address) { return release(address); }
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, Stream *stream) {
    CHECK("cuMemcpyHtoDAsync_v2");
    memcpy(to, from, size);
    return stream->capture ? INVALID_VALUE : OK;
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, Stream *stream) {
    CHECK("cuMemcpyDtoHAsync_v2");
    memcpy(to, from, size);
    return stream->capture ? INVALID_VALUE : OK;
}

int cuStreamCreate(Stream **stream, unsigned flags) {
    CHECK("cuStreamCreate");
    *stream = calloc(1, sizeof **stream), live++;
    return flags == 1 ? OK : INVALID_VALUE;
}
int cuStreamDestroy_v2(Stream *stream) { free(stream), live--; return OK; }
int cuStreamSynchronize(Stream *stream) { CHECK("cuStreamSynchronize"); return stream->capture ? INVALID_VALUE : OK; }
int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    CHECK("cuStreamBeginCapture_v2");
    stream->capture = calloc(1, sizeof *stream->capture), live++;
    return mode == 1 ? OK : INVALID_VALUE;
}
int cuStreamEndCapture(Stream *stream, Graph **graph) {
    *graph = stream->capture, stream->capture = NULL;
    if (!stream->spoilt) return OK;
    free(*graph), live--, *graph = NULL, stream->spoilt = 0;
    return CAPTURE_INVALIDATED;
}
int cuGraphInstantiateWithFlags(Graph **executable, const Graph *graph, unsigned long long flags) {
    CHECK("cuGraphInstantiateWithFlags");
    *executable = malloc(sizeof **executable), **executable = *graph, live++;
    return flags ? INVALID_VALUE : OK;
}
int cuGraphLaunch(const Graph *executable, Stream *stream) {
    launches++;
    for (int index = 0; index < executable->count; index++) fake_enqueue(stream, executable->work[index]);
    return OK;
}
int cuGraphDestroy(Graph *graph) { free(graph), live--; return OK; }
int cuGraphExecDestroy(Graph *graph) { free(graph), live--; return OK; }

int cuEventCreate(Event **event, unsigned flags) {
    *event = calloc(1, sizeof **event), live++;
    return flags ? INVALID_VALUE : OK;
}
int cuEventDestroy_v2(Event *event) { free(event), live--; return OK; }
int cuEventRecord(Event *event, Stream *stream) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    event->time = now.tv_sec * 1e3 + now.tv_nsec / 1e6, event->recorded = 1;
    return stream ? OK : INVALID_VALUE;
}
int cuEventElapsedTime(float *milliseconds, const Event *start, const Event *end) {
    *milliseconds = (float)(end->time - start->time);
    return start->recorded && end->recorded ? OK : INVALID_VALUE;
}
