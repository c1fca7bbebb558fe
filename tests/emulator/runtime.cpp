// runtime.cpp - the emulator's own side: fibers, what they wait for, copies in flight, a launch.
//
// Whoever must wait switches straight to a thread that can run: first one of its own warp, since
// their meeting is what it waits for, then the next in the block's order. The order is forward,
// backward or random. Shared memory is full of NaN when a block begins.
#include "cuda.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <algorithm>
#include <cstdio>
#include <string>
#include <sys/mman.h>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

// ThreadSanitizer sees every thread of the GPU as a fiber of its own, and meetings as the only order
// there is between them: what races on a GPU is reported, even where the numbers came out right. It
// watches the kernel alone; this file, which is everybody's, is compiled without it.
#ifdef WATCHED
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void* __tsan_get_current_fiber();
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#define WATCH(x) x
#else
#define WATCH(x)
#endif

namespace emulator {

thread_local Thread* thread;
thread_local Block* block;

constexpr size_t STACK = 128 << 10, PAGE = 4096;
enum State { RUNS, WAITS_FOR_WARP, WAITS_AT_BARRIER, ENDED };

struct Copy { void* to; const void* from; int size, bytes; };
struct Fiber : Thread {
    State state;
    const char* what;                   // it waits for, or did last,
    int line;                           // and where
    void* left;                         // what it leaves for its warp, or the Barrier it stands at
    std::vector<Copy> copies;
    std::vector<size_t> groups;         // how many copies belong to the groups up to each
    char* stack;
    void* seen;                         // by ThreadSanitizer
#ifdef __x86_64__
    void* sp;
#else
    ucontext_t context;
#endif
};
struct Barrier { int wanted, here, line; };

struct Grid : Block {                   // the one that is being run
    std::vector<Fiber> fibers;
    std::vector<int> order, place, met; // met: how many lanes of each warp have come
    Barrier barriers[16];
    int count, running;
    size_t size = 0, mapped = 0;
    char* pages = nullptr;
    void (*kernel)(void**);
    void** arguments;
    bool late;
    std::string error;
    Fiber outside;                      // whoever launched
} grid;
long reads, conflicts;

static Fiber& me() { return *static_cast<Fiber*>(thread); }

// ---- switching

#ifdef __x86_64__
// Keep the registers that a function must keep, change stacks, and take up those of the other.
extern "C" void switch_stacks(void** from, void* to);
asm(R"(
.text
.type switch_stacks, @function
switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#endif

static void switch_to(Fiber& from, Fiber& to) {
    thread = &to;
    WATCH(__tsan_switch_to_fiber(to.seen, 1);)
#ifdef __x86_64__
    switch_stacks(&from.sp, to.sp);
#else
    swapcontext(&from.context, &to.context);
#endif
}

[[noreturn]] static void leave() {
    Fiber& last = me();
    switch_to(last, grid.outside);
    __builtin_unreachable();
}

void die(const char* what) {
    char line[256];
    const Fiber& f = me();
    uint3 b = grid.index;
    snprintf(line, sizeof line, "%s: block (%u, %u, %u), thread %d, at %s in line %d", what, b.x, b.y, b.z,
             f.number, f.what, f.line);
    grid.error = line;
    int told = 0;
    for (const Fiber& other : grid.fibers) {
        if (other.number >= grid.count || other.state == RUNS || told++ == 6) continue;
        const char* state = other.state == WAITS_FOR_WARP ? "waits for its warp"
                            : other.state == WAITS_AT_BARRIER ? "waits at a barrier" : "has ended";
        snprintf(line, sizeof line, "; thread %d %s (%s, line %d)", other.number, state, other.what, other.line);
        if (told <= 6) grid.error += line;
    }
    leave();
}

static void go_on(bool in_warp) {
    Fiber& m = me();
    int n = grid.count;
    if (in_warp) {
        int first = m.warp * 32, lanes = std::min(32, n - first);
        for (int i = 1; i < lanes; i++) {
            Fiber& other = grid.fibers[first + (m.lane + i) % lanes];
            if (other.state == RUNS) return switch_to(m, other);
        }
    }
    for (int i = 1; i <= n; i++) {
        Fiber& other = grid.fibers[grid.order[(grid.place[m.number] + i) % n]];
        if (other.state != RUNS) continue;
        if (&other != &m) switch_to(m, other);
        return;
    }
    die("every thread waits: a barrier or a collective that not all of them come to");
}

// ---- meetings

void together(void* mine, const char* what, int line, void (*all)(void**, int)) {
    Fiber& m = me();
    m.left = mine, m.what = what, m.line = line;
    int first = m.warp * 32, lanes = std::min(32, grid.count - first);
    int& met = grid.met[m.warp];
    WATCH(__tsan_release(&met);)
    if (++met < lanes) {
        m.state = WAITS_FOR_WARP;
        go_on(true);
    } else {
        void* left[32];
        for (int i = 0; i < lanes; i++) {
            Fiber& f = grid.fibers[first + i];
            left[i] = f.left;
            if (f.what != what || f.line != line) die("lanes of one warp are in different collectives");
        }
        met = 0;
        WATCH(__tsan_acquire(&met);)
        all(left, lanes);
        WATCH(__tsan_release(&met);)
        for (int i = 0; i < lanes; i++) grid.fibers[first + i].state = RUNS;
    }
    WATCH(__tsan_acquire(&met);)
}

static void open(Barrier& b) {
    b.here = 0;
    for (int i = 0; i < grid.count; i++) {
        Fiber& f = grid.fibers[i];
        if (f.state == WAITS_AT_BARRIER && f.left == &b) f.state = RUNS;
    }
}

void barrier(int number, int threads, int line) {
    Fiber& m = me();
    Barrier& b = grid.barriers[number];
    m.what = "a barrier", m.line = line;
    if (!b.here) b.wanted = threads, b.line = line;
    else if (b.line != line || b.wanted != threads) die("threads meet at different barriers");
    WATCH(__tsan_release(&b);)
    if (++b.here < (threads ? threads : grid.running)) {
        m.state = WAITS_AT_BARRIER, m.left = &b;
        go_on(false);
    } else {
        open(b);
    }
    WATCH(__tsan_acquire(&b);)
}

// ---- copies

static void land(const Copy& c) {
    memcpy(c.to, c.from, c.bytes);
    memset((char*)c.to + c.bytes, 0, c.size - c.bytes);
}
void copy(void* to, const void* from, int size, int bytes) {
    Copy c{to, from, size, bytes};
    if (grid.late) me().copies.push_back(c);
    else land(c);
}
void commit() { me().groups.push_back(me().copies.size()); }
void wait(int groups) {
    Fiber& m = me();
    if ((int)m.groups.size() <= groups) return;
    size_t landed = m.groups[m.groups.size() - 1 - groups];
    for (size_t i = 0; i < landed; i++) land(m.copies[i]);
    m.copies.erase(m.copies.begin(), m.copies.begin() + landed);
    m.groups.erase(m.groups.begin(), m.groups.end() - groups);
    for (size_t& g : m.groups) g -= landed;
}

// Shared memory has 32 banks of 4 bytes: eight rows of 16 bytes are read at once if they lie in
// different eighths of 128 bytes.
void count_conflicts(const uint16_t* const rows[8]) {
    int hits[8] = {};
    for (int i = 0; i < 8; i++) hits[(uintptr_t)rows[i] / 16 % 8]++;
    reads++, conflicts += *std::max_element(hits, hits + 8) - 1;
}

// ---- a block, a launch

static void run_thread() {
    grid.kernel(grid.arguments);
    Fiber& m = me();
    m.state = ENDED, m.what = "its end";
    grid.running--;
    WATCH(__tsan_release(&grid);)
    if (!m.copies.empty()) die("a thread has ended and did not wait for its copies");
    Barrier& b = grid.barriers[0];
    if (grid.running && b.here == grid.running && !b.wanted) open(b);       // it is not waited for
    if (grid.running) go_on(false);
    leave();
}

static void prepare(Fiber& f, int number) {
    dim3 n = grid.threads;
    unsigned i = number;
    f.number = number, f.lane = number % 32, f.warp = number / 32;
    f.index = {i % n.x, i / n.x % n.y, i / (n.x * n.y)};
    f.state = RUNS, f.what = "its beginning", f.line = 0;
    f.copies.clear(), f.groups.clear();
    WATCH(f.seen = __tsan_create_fiber(0);)
#ifdef __x86_64__
    void** sp = (void**)(f.stack + STACK);
    *--sp = nullptr;                    // where run_thread would return to: it does not
    *--sp = (void*)run_thread;
    for (int k = 0; k < 6; k++) *--sp = nullptr;
    f.sp = sp;
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack, f.context.uc_stack.ss_size = STACK, f.context.uc_link = nullptr;
    makecontext(&f.context, run_thread, 0);
#endif
}

static void arrange(const Options* options) {
    int n = grid.count;
    for (int i = 0; i < n; i++) grid.order[i] = options->order == 1 ? n - 1 - i : i;
    unsigned s = options->seed * 2654435761u + grid.index.x * 97 + grid.index.y * 131 + 1;
    for (int i = n - 1; options->order == 2 && i > 0; i--) {
        s = s * 1664525u + 1013904223u;
        std::swap(grid.order[i], grid.order[(s >> 8) % (i + 1)]);
    }
    for (int i = 0; i < n; i++) grid.place[grid.order[i]] = i;
}

static void run_block(uint3 index, const Options* options) {
    grid.index = index, grid.running = grid.count;
    for (Barrier& b : grid.barriers) b = Barrier{};
    if (grid.size) memset(grid.shared, 0xff, grid.size);    // all ones is NaN, whatever the type
    std::fill(grid.met.begin(), grid.met.end(), 0);
    arrange(options);
    for (int i = 0; i < grid.count; i++) prepare(grid.fibers[i], i);
    WATCH(grid.outside.seen = __tsan_get_current_fiber();)
    switch_to(grid.outside, grid.fibers[grid.order[0]]);
    WATCH(__tsan_acquire(&grid); for (int i = 0; i < grid.count; i++) __tsan_destroy_fiber(grid.fibers[i].seen);)
}

static void make_room(size_t shared) {
    for (size_t i = grid.fibers.size(); i < (size_t)grid.count; i++) {
        grid.fibers.emplace_back();
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        char* p = (char*)mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
        mprotect(p, PAGE, PROT_NONE);
        grid.fibers[i].stack = p + PAGE;
        grid.fibers[i].number = i;
    }
    grid.order.resize(grid.count), grid.place.resize(grid.fibers.size()), grid.met.resize((grid.count + 31) / 32);
    size_t pages = (shared + PAGE - 1) / PAGE * PAGE;
    if (!grid.pages || pages != grid.mapped) {
        if (grid.pages) munmap(grid.pages, grid.mapped + PAGE);
        int flags = MAP_PRIVATE | MAP_ANONYMOUS;
        grid.pages = (char*)mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
        mprotect(grid.pages + pages, PAGE, PROT_NONE);
        grid.mapped = pages;
    }
    grid.size = (shared + 15) / 16 * 16;
    grid.shared = grid.pages + pages - grid.size;
}

const char* launch(void (*kernel)(void**), const unsigned* blocks, const unsigned* threads, size_t shared,
                   void** arguments, const Options* options) {
    block = &grid;
    grid.blocks = {blocks[0], blocks[1], blocks[2]}, grid.threads = {threads[0], threads[1], threads[2]};
    grid.count = threads[0] * threads[1] * threads[2];
    grid.kernel = kernel, grid.arguments = arguments, grid.late = options->late;
    grid.error.clear();
    make_room(shared);
    for (unsigned z = 0; z < blocks[2]; z++)
        for (unsigned y = 0; y < blocks[1]; y++)
            for (unsigned x = 0; x < blocks[0]; x++) {
                run_block({x, y, z}, options);
                if (!grid.error.empty()) return grid.error.c_str();
            }
    return nullptr;
}
}  // namespace emulator

extern "C" void statistics(long* out) {
    out[0] = emulator::reads, out[1] = emulator::conflicts;
    emulator::reads = emulator::conflicts = 0;
}
