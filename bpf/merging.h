/* SPDX-License-Identifier: Apache-2.0
 *
 * Packets that receiving merges into others (GRO).
 *
 * A driver hands a packet to napi_gro_receive(). The first of a flow is held for a moment; what follows it is
 * appended to it, and ends: its sk_buff is freed without a word, or lies in the fragment list of the first until
 * that one is freed. One packet, as long as all of them, goes on up under the number of the first.
 *
 *   napi_gro_receive_entry(skb)       the packet is remembered, on its CPU
 *       dev_gro_receive(), which may free it, and its buffer
 *   napi_gro_receive_exit(result)     tells what became of it: held, merged, or passed on
 *
 * Nobody tells into which packet one was merged. It can only be the one of its flow that was held last, at that
 * device and on that CPU; if that is so, it has grown. (A held packet that nobody follows is not known, and one
 * of before is not taken for it.)
 */

#ifdef FUNC_skb_gro_receive
/* enum gro_result */
#define GRO_MERGED	0
#define GRO_MERGED_FREE 1
#define GRO_HELD	2

struct handed_over {
	u64 skb; /* 0: nobody we follow */
	u64 head;
	u64 key;
	u32 cloned;
	u32 len;
	struct path path;
};

BPF_PERCPU_ARRAY(handed_over, struct handed_over, 1);

struct held {
	u64 skb;
	u64 head;
	u32 packet;
	u32 len;
};

BPF_TABLE("lru_hash", u64, struct held, held, 4096);

int merging_entry(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	struct state *state = state_of_capture();
	struct handed_over *over = handed_over.lookup(&zero);
	struct sk_buff_view view;
	struct header header = {};
	struct path *path;
	u64 skb = ctx->args[0];
	u64 head;

	if (!over)
		return 0;
	over->skb = 0;
	if (!state->tagged)
		return 0;
	head = sk_buff_open(&view, skb);
	path = path_at(state, head);
	if (!path || sk_buff_read(&view))
		return 0;
	/* A driver's new packet has no network header yet; this is where GRO will find it. */
	over->key = source_key(flow_at(MEMBER(&view, u64, sk_buff__data), &header) ^ sk_buff_device(&view));
	over->path = *path;
	over->cloned = BITS(&view, sk_buff__cloned);
	over->len = MEMBER(&view, u32, sk_buff__len);
	over->head = head;
	over->skb = skb;
	return 0;
}

/* The packet that has just grown. */
static __always_inline u32 merged_into(const struct state *state, u64 key)
{
	struct held *first = held.lookup(&key);
	struct path *path;
	u64 head;
	u32 len;

	if (!first)
		return 0;
	head = first->head;
	path = path_at(state, head);
	if (!path || path->packet != first->packet || read_pointer(first->skb, sk_buff__head) != head)
		return 0;
	len = read_u32(first->skb, sk_buff__len);
	if (len <= first->len)
		return 0;
	first->len = len;
	return first->packet;
}

int merging_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	u32 result = ctx->args[0];
	struct state *state = state_of_capture();
	struct handed_over *over = handed_over.lookup(&zero);
	struct where where = {.func = FUNC_skb_gro_receive};
	struct place place = {};
	struct path *path;
	u64 head;

	if (!over || !over->skb)
		return 0;
	head = over->head;
	if (result == GRO_HELD && !is_ignored(&over->path)) {
		struct held first = {
			.skb = over->skb, .head = head, .packet = over->path.packet, .len = over->len};

		held.update(&over->key, &first);
	} else if (result <= GRO_MERGED_FREE) {
		if (!is_ignored(&over->path))
			where.location = merged_into(state, over->key);
		place.netns = over->path.netns;
		if (!is_ignored(&over->path) && namespace_wanted(&place))
			send_event(state, &over->path, bpf_ktime_get_ns(), over->skb, &where,
				   EVENT_END | EVENT_MERGED);
		if (result == GRO_MERGED_FREE)
			forget_head(over->skb);
		path = path_at(state, head);
		if (path && path->packet == over->path.packet) {
			/* The first took the buffer itself, as a page, and nobody will tell when that goes. */
			if (result == GRO_MERGED_FREE && !over->cloned)
				path_remove(state, head);
			/* In the first one's list it may travel far; whether it does is not told. */
			path->netns = 0;
			path->ifindex = 0;
		}
	}
	over->skb = 0;
	return 0;
}
#endif
