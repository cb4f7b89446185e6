/* Steers hound from inside the program that it records, in C and C++.
 *
 * The functions are libhound.so's, if it is in the process (`hound run`, `LD_PRELOAD=libhound.so`), and do nothing where it is not: a program
 * that includes this needs no hound to be built or run, and nothing is linked to it. */
#ifndef HOUND_H
#define HOUND_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

extern void memory_profiler_start(void) __attribute__((weak));
extern void memory_profiler_stop(void) __attribute__((weak));
extern void memory_profiler_sync(void) __attribute__((weak));
extern void memory_profiler_set_marker(uint32_t value) __attribute__((weak));
extern void memory_profiler_override_next_timestamp(uint64_t ticks) __attribute__((weak));

#ifdef __cplusplus
}
#endif

/* Whether libhound.so is in this process. */
static inline int hound_is_there(void) { return memory_profiler_start != 0; }

/* Starts recording, or resumes it. Nothing if it goes on already. */
static inline void hound_start(void) {
    if (memory_profiler_start) memory_profiler_start();
}

/* Stops recording. What is allocated or released meanwhile is not seen, and what lives through it is counted apart. */
static inline void hound_stop(void) {
    if (memory_profiler_stop) memory_profiler_stop();
}

/* What was recorded so far is hound's to write. It is so at any time; this is for programs that were written for other profilers. */
static inline void hound_sync(void) {
    if (memory_profiler_sync) memory_profiler_sync();
}

/* Marks this moment with a number. */
static inline void hound_set_marker(uint32_t value) {
    if (memory_profiler_set_marker) memory_profiler_set_marker(value);
}

/* Gives the next event of the calling thread this time, in ticks of the capture's clock. */
static inline void hound_override_next_timestamp(uint64_t ticks) {
    if (memory_profiler_override_next_timestamp) memory_profiler_override_next_timestamp(ticks);
}

#endif
