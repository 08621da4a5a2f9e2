/*
 * How long a cache line takes from one processor to another and back: `probe CPU CPU`, nanoseconds
 * on standard output.
 *
 * Virtual machines have two states that differ by a factor of four here and of two in everything
 * that two processors do together, and go from one to the other on their own. The median of short
 * batches is taken, for whoever is interrupted takes a thousand times as long.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
	BATCHES = 51,
	TRIPS = 200,
	CACHE_LINE = 64,
};

static struct {
	_Alignas(CACHE_LINE) _Atomic uint32_t ball;
	char rest[CACHE_LINE - sizeof(uint32_t)];
} line;

static int pin(const char *cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(strtoul(cpu, NULL, 10), &set);
	return sched_setaffinity(0, sizeof(set), &set);
}

/* The ball is at 2 * n: it is ours. At 2 * n + 1 it is theirs. */
static void *return_balls(void *cpu)
{
	uint32_t last = 2 * BATCHES * TRIPS;

	if (pin(cpu))
		exit(EXIT_FAILURE);
	for (uint32_t ball = 1; ball < last; ball += 2) {
		while (atomic_load_explicit(&line.ball, memory_order_acquire) != ball)
			;
		atomic_store_explicit(&line.ball, ball + 1, memory_order_release);
	}
	return NULL;
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Returns nanoseconds for each trip. */
static double play(uint32_t *ball)
{
	int64_t begin = now();

	for (int i = 0; i < TRIPS; i++) {
		atomic_store_explicit(&line.ball, ++*ball, memory_order_release);
		++*ball;
		while (atomic_load_explicit(&line.ball, memory_order_acquire) != *ball)
			;
	}
	return (double)(now() - begin) / TRIPS;
}

static int by_value(const void *a, const void *b)
{
	double left = *(const double *)a, right = *(const double *)b;

	return (left > right) - (left < right);
}

int main(int count, char **arguments)
{
	double batches[BATCHES];
	uint32_t ball = 0;
	pthread_t thread;

	if (count != 3 || pin(arguments[1]) ||
	    pthread_create(&thread, NULL, return_balls, arguments[2])) {
		fputs("probe: two processors, please\n", stderr);
		return EXIT_FAILURE;
	}
	for (int i = 0; i < BATCHES; i++)
		batches[i] = play(&ball);
	pthread_join(thread, NULL);
	qsort(batches, BATCHES, sizeof(*batches), by_value);
	printf("%.1f\n", batches[BATCHES / 2]);
	return EXIT_SUCCESS;
}
