/* SPDX-License-Identifier: Apache-2.0
 *
 * The rings that events travel in, one for each CPU.
 *
 * The kernel's ring buffer is one for all CPUs, with a lock that each event takes twice and interrupts that are off
 * meanwhile. These are arrays that user space maps, so that room for an event is one exchange of a number that no other
 * CPU touches:
 *
 *   rings[cpu]    head ->  next position        written here, by whatever runs on the CPU, and what interrupts that
 *                 tail ->  first position kept   written by user space, which has read all before
 *                 lost     events that found head - tail = the ring's size
 *
 *   records       | cpu 0: position % size | cpu 1: ...      each a stamp and an event
 *
 * A record is written when its stamp is its position + 1: the stamp comes last, and user space reads a run up to the first
 * that is not yet there. An event that is lost takes a number all the same (`seq` = position + lost before), so that it
 * leaves a gap where it is missing. Nothing can come between reading `lost` and the exchange: another event would have
 * moved the head, and there was room.
 *
 * There are as many rings as the machine has CPUs when the capture starts, with those that are offline. Those that are
 * plugged in later share the first's: that works, with several writers the exchange is only slower, but to who counts by
 * CPU the numbers of all have gaps.
 *
 * Kernels before 5.12 have no such exchange, and one ring of the kernel's.
 */

#ifdef HAVE_FETCH_ADD
#define LINE 8 /* u64 in a cache line */

struct cpu_ring {
	u64 head;
	u64 lost;
	u64 kept_apart[LINE - 2];
	u64 tail;
	u64 from_the_next[LINE - 1];
};

struct record {
	u64 stamp;
	struct event event;
};

struct cpu_rings {
	struct cpu_ring at[CPUS];
};

ONE_VALUE(struct cpu_rings, cpu_rings);
BPF_F_TABLE("array", u32, struct record, records, CPUS << RECORDS_BITS, MAPPED);

#define INTERRUPTED 4 /* tries: so many programs may interrupt one another */

/* Room for an event, with its number; 0 where there is none, which is counted. */
static __always_inline struct record *record_open(u64 *stamp)
{
	struct cpu_rings *all = ONLY_VALUE(cpu_rings);
	u32 number = bpf_get_smp_processor_id();
	u64 cpu = number;
	struct cpu_ring *ring;
	struct record *record;
	u64 head, lost;
	u32 place;

	/* One number, in one register: verifiers before 6.7 do not know how large it is, and clang would compare a copy. */
	asm volatile("" : "+r"(cpu));
	if (cpu >= CPUS)
		cpu = 0;
	ring = &all->at[cpu];
#pragma unroll
	for (int try = 0; try < INTERRUPTED; try++) {
		head = *(volatile u64 *)&ring->head;
		lost = *(volatile u64 *)&ring->lost;
		if (head - *(volatile u64 *)&ring->tail >= 1 << RECORDS_BITS)
			break;
		if (__sync_val_compare_and_swap(&ring->head, head, head + 1) == head)
			goto taken;
	}
	COUNT(&ring->lost);
	return 0;
taken:
	place = cpu << RECORDS_BITS | (head & ((1 << RECORDS_BITS) - 1));
	record = records.lookup(&place);
	if (!record)
		return 0;
	record->event.cpu = number; /* of this very number, not of where the program may have moved since */
	record->event.seq = head + lost;
	*stamp = head + 1;
	return record;
}

static __always_inline void record_close(struct record *record, u64 stamp)
{
#ifdef TOTAL_STORE_ORDER
	asm volatile("" ::: "memory");
	*(volatile u64 *)&record->stamp = stamp;
#else
	__sync_lock_test_and_set(&record->stamp, stamp);
#endif
}
#else
/* Number of the next event on each CPU. A gap in what arrives is a lost event, and tells where it was lost;
 * the sum is how many events there were in all. */
BPF_PERCPU_ARRAY(sequence, u64, 1);
BPF_RINGBUF_OUTPUT(events, EVENTS_PAGES);
#endif
