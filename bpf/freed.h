/* SPDX-License-Identifier: Apache-2.0
 *
 * Ends that nobody reports: what the allocator takes back, and what was read (see identity.h).
 */

#if defined(FUNC_kfree) || defined(FUNC_kmem_cache_free)
/* The allocator frees something: perhaps the buffer of a packet that is followed, perhaps an sk_buff that had
 * lost its buffer before. Two sk_buffs that were allocated as a pair (fclone) are freed as one. */
static __always_inline int freed(void *ctx, u64 address, struct where where)
{
	struct state *state = state_of_capture();
	struct freer freer = {};
	struct place place = {};
	struct path *path;
	struct path copy;
	u64 now;
	u64 skb = address;

	if (!state->tagged || !address)
		return 0;
	freer.location = where.location;
	path = path_at(state, address);
	if (path) {
		u64 frames[STACK_DEPTH] = {};

		now = bpf_ktime_get_ns();
		copy = *path;
		if (path_take(state, address))
			return 0; /* another CPU was faster */
#ifdef SKBUFF_START
		/* Buffers are freed in net/core/skbuff.c. This was in a page that had gone without a word, and is
		 * something else's by now. */
		if (where.location - SKBUFF_START >= SKBUFF_SIZE) {
			if (!is_ignored(&copy))
				send_unseen(state, &copy, now);
			__sync_fetch_and_add(&state->tagged, -1);
			return 0;
		}
#endif
		find_freer(ctx, frames, NEAR_FRAMES, &freer);
		if (freer.location == where.location)
			find_freer(ctx, frames, STACK_DEPTH, &freer);
		skb = copy.skb;
		forget_head(skb);
		if (skb && freer.expanding && !moved.update(&skb, &copy)) {
			COUNT(&state->moved);
			return 0;
		}
	} else {
		if (!state->moved)
			return 0;
		path = moved.lookup(&skb);
		if (!path) {
			skb += sk_buff__SIZE;
			path = moved.lookup(&skb);
			if (!path)
				return 0;
		}
		now = bpf_ktime_get_ns();
		copy = *path;
		if (moved.delete(&skb))
			return 0;
		__sync_fetch_and_add(&state->moved, -1);
	}
	__sync_fetch_and_add(&state->tagged, -1);
	if (is_ignored(&copy) || !skb)
		return 0; /* nobody's, or what stayed behind when the packet got another buffer */
	where.location = freer.location;
	place.netns = copy.netns;
	if (namespace_wanted(&place)) {
		send_event(state, &copy, now, skb, &where, EVENT_END | (copy.parted ? 0 : EVENT_LAST));
		note_time(state, now);
	}
	return 0;
}
#endif

/* Whether a packet that was seen last on its way to a socket has left the socket's queue again: somebody read it. Kernels
 * since 5.18 may keep what was read for a while before they free it (skb_attempt_defer_free), and say nothing of
 * either. An sk_buff that's in no list points to no neighbour, and one that has let go of the buffer is another's by
 * now. Run by the tracer, for a buffer it found in skb_map. */
static __always_inline int was_read(u64 head)
{
	struct state *state = state_of_capture();
	struct path *path;
	u8 head_frag;
	u32 packet;
	u64 skb;

	path = path_at(state, head);
	if (!path)
		return 0;
	packet = path->packet;
	skb = path->skb;
	if (read_pointer(skb, sk_buff__head) == head && read_pointer(skb, sk_buff__prev))
		return 0;
	head_frag = LOAD(u8, skb + sk_buff__head_frag);
	path = path_at(state, head);
	if (!path || path->packet != packet)
		return 0;
	/* The allocator will tell of the end of its own buffers, and not of those from pages. */
	if (head_frag >> sk_buff__head_frag_SHIFT & 1)
		path_remove(state, head);
	return 1;
}
