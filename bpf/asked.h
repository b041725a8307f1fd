/* SPDX-License-Identifier: Apache-2.0
 *
 * Packets that the filter has just refused.
 *
 * A packet passes several entries, one behind the other; the filter is asked at the first, and most packets are
 * nobody's. Asking is what other traffic pays, so what an entry refused is not asked about again at the entries that
 * come behind it. Each entry has a rank in the order in which one packet passes them, from the socket's send function
 * to the receiving side of a device. A buffer that this CPU saw refused last, and that appears at a higher rank, is
 * that packet's still; at the same rank or a lower one it is another's. What is dropped gives its buffer back, and so is
 * forgotten; what was sent may be used up unnoticed, so that a receiving side asks for itself. (What waits on one side
 * and ends on another CPU is not noticed. A packet socket's next one, in that buffer, begins at TC.)
 *
 * TC programs ask always: they see all of a packet, and its addresses as they are on the wire. So does whatever a
 * packet may meet first. What is missed by an entry in between (addresses that were translated before it) is found
 * there: the path then begins at TC. With match="every" each function asks for itself.
 */

struct refusal {
	u64 head;
	u32 rank;
};

BPF_PERCPU_ARRAY(refusals, struct refusal, 1);

static __always_inline int was_refused(u64 head, u32 rank)
{
	u32 zero = 0;
	struct refusal *last = refusals.lookup(&zero);

	if (!last || last->head != head || last->rank >= rank)
		return 0;
	if (last->rank <= RANK_DEVICE && rank > RANK_DEVICE)
		return 0;
	last->rank = rank;
	return 1;
}

static __always_inline void note_refusal(u64 head, u32 rank, u16 kind)
{
	u32 zero = 0;
	struct refusal *last = refusals.lookup(&zero);

	if (!last)
		return;
	/* An interrupt's packet may come in between; then it is this one that is not known. */
	last->head = 0;
	if (kind & KIND_END)
		return;
	last->rank = rank;
	last->head = head;
}
