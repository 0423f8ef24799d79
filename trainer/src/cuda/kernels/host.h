// CUDA's kernels on the processor, for the tests: a block's threads are coroutines that take turns at
// __syncthreads, blocks run one after the other.
#pragma once
#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static thread_local

struct Index {
    unsigned int x, y, z;
};
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;

namespace host {
const size_t STACK = 96 * 1024;
struct Fiber {
    ucontext_t context;
    Index index;
    bool done;
};
static thread_local ucontext_t scheduler;
static thread_local Fiber* current;
static thread_local void (*body)(void**);
static thread_local void** arguments;

inline void enter() {
    body(arguments);
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

// Every thread up to its next barrier, again and again until all are done.
inline void run_block(std::vector<Fiber>& fibers, std::vector<char>& stacks) {
    size_t number = 0;
    for (unsigned int z = 0; z < blockDim.z; ++z)
        for (unsigned int y = 0; y < blockDim.y; ++y)
            for (unsigned int x = 0; x < blockDim.x; ++x, ++number) {
                Fiber& fiber = fibers[number];
                getcontext(&fiber.context);
                fiber.context.uc_stack.ss_sp = stacks.data() + number * STACK;
                fiber.context.uc_stack.ss_size = STACK;
                fiber.context.uc_link = nullptr;
                fiber.index = {x, y, z};
                fiber.done = false;
                makecontext(&fiber.context, enter, 0);
            }
    for (size_t left = fibers.size(); left > 0;) {
        left = 0;
        for (Fiber& fiber : fibers) {
            if (fiber.done) continue;
            current = &fiber;
            threadIdx = fiber.index;
            swapcontext(&scheduler, &fiber.context);
            left += !fiber.done;
        }
    }
}

inline void run(void (*kernel)(void**), const unsigned int* grid, const unsigned int* block, void** args) {
    body = kernel;
    arguments = args;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    std::vector<Fiber> fibers((size_t)block[0] * block[1] * block[2]);
    std::vector<char> stacks(fibers.size() * STACK);
    for (unsigned int z = 0; z < grid[2]; ++z)
        for (unsigned int y = 0; y < grid[1]; ++y)
            for (unsigned int x = 0; x < grid[0]; ++x) {
                blockIdx = {x, y, z};
                run_block(fibers, stacks);
            }
}

// A kernel called with pointers to its arguments, as the driver calls it.
template <auto K>
struct Call;
template <typename... A, void (*K)(A...)>
struct Call<K> {
    template <size_t... I>
    static void unpack(void** args, std::index_sequence<I...>) {
        K(*(A*)args[I]...);
    }
    static void call(void** args) { unpack(args, std::index_sequence_for<A...>{}); }
};
}  // namespace host

inline void __syncthreads() {
    host::Fiber* me = host::current;
    swapcontext(&me->context, &host::scheduler);
    threadIdx = me->index;
}

inline float __uint_as_float(unsigned int bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline unsigned int __float_as_uint(float value) {
    unsigned int bits;
    memcpy(&bits, &value, 4);
    return bits;
}
