/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether the kernel skips the programs of functions just now.
 *
 * It does on a CPU while it runs one of them there already, while it handles any kprobe, and while it works on a map for
 * user space. What interrupts that passes those functions unseen; and where whoever does it may be preempted meanwhile
 * (programs of functions are since Linux 7.2), so does whatever runs instead. The kernel counts most of what it skips
 * since 6.7, but does not say whose hops they were. Programs of tracepoints and of TC are not skipped then: their hops
 * look whether others would be, and tell that the packet may lack some. What is skipped between two of them is not told;
 * and a packet too many is where somebody else's kprobe is handled, which kprobe.multi would not mind.
 *
 * Three variables of the kernel know, two of them the CPU's own; user space finds them in kallsyms. Where it does not,
 * nobody knows.
 */

static __always_inline int functions_are_skipped(void)
{
#ifdef PER_CPU_OFFSETS
	u64 cpu = bpf_get_smp_processor_id();
	u64 of_cpu = LOAD(u64, PER_CPU_OFFSETS + cpu * sizeof(u64));

	return of_cpu && (LOAD(u32, of_cpu + BPF_PROG_ACTIVE) || LOAD(u64, of_cpu + CURRENT_KPROBE));
#else
	return 0;
#endif
}
