/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls of traced functions, from their entries to their returns.
 */

#ifdef HAVE_RETURNS
/* Calls that were recorded and have not returned. No two of them share a stack pointer at entry, but for one that
 * ended by jumping into the other; those are two functions. So the return, of which the kernel tells no more
 * than where it came from, finds its entry by both, however calls are nested, interrupted or recursive. */
struct call {
	u64 skb;
	u32 packet;
	u32 netns;
	u32 ifindex;
	u32 len;
	u32 mark;
	u16 snapshot;
	u16 func;
};

BPF_HASH(calls, u64, struct call, CALLS_ENTRIES);

/* All addresses of stacks have the same upper 16 bits. */
static __always_inline u64 call_key(u64 stack_pointer, u16 func)
{
	return stack_pointer ^ (u64)func << 48;
}

static __always_inline int open_call(struct state *state, const struct path *path, u64 skb,
				     const struct where *where)
{
	u64 key = call_key(where->call, where->func);
	struct call call = {.skb = skb,
			    .packet = path->packet,
			    .netns = path->netns,
			    .ifindex = path->ifindex,
			    .len = path->len,
			    .mark = path->mark,
			    .snapshot = path->snapshot,
			    .func = where->func};

	COUNT(&state->opened);
	if (!calls.update(&key, &call))
		return 1;
	COUNT(&state->forgotten);
	return 0;
}

static __always_inline int has_open_calls(struct state *state)
{
	return state->opened != state->closed + state->forgotten;
}

/* At an entry: what is open under the same key has returned, and that was missed. Else the return of this call, if
 * it is not recorded, would be taken for it. */
static __always_inline void forget_call(struct state *state, u64 stack_pointer, u16 func)
{
	u64 key = call_key(stack_pointer, func);

	if (has_open_calls(state) && !calls.delete(&key))
		COUNT(&state->forgotten);
}

/* 1 where the call was an open one. */
static __always_inline int close_call(struct state *state, u64 stack_pointer, u16 func)
{
	u64 key = call_key(stack_pointer, func);
	struct where where = {.func = func, .location = stack_pointer};
	struct call *call = calls.lookup(&key);
	struct path path = {};
	u64 skb;

	if (!call || state->armed == DISARMED)
		return 0;
	skb = call->skb;
	path.packet = call->packet;
	path.netns = call->netns;
	path.ifindex = call->ifindex;
	path.len = call->len;
	path.mark = call->mark;
	path.snapshot = call->snapshot;
	if (calls.delete(&key))
		return 0;
	COUNT(&state->closed);
	path.pid = bpf_get_current_pid_tgid() >> 32;
	send_event(state, &path, bpf_ktime_get_ns(), skb, &where, EVENT_RETURN);
	return 1;
}
#endif
