/* SPDX-License-Identifier: Apache-2.0
 *
 * One packet, one number.
 *
 * An sk_buff's address says little: the kernel reuses it within microseconds, and clones of one packet have
 *several. What the clones share, and what no living packet shares with another, is the buffer of the packet's
 *data, `skb->head`:
 *
 *	sk_buff A ---+                       skb_map: head -> struct path { number, ... }
 *	             +--> head [ headers | data | ... | skb_shared_info: dataref ]
 *	clone   B ---+
 *
 * So skb_map is keyed by `head`. A packet gets its number where the filter first takes it, and keeps it until
 *its buffer is freed. That is seen twice over:
 *
 * - kfree_skb and consume_skb report the end of an sk_buff. When nobody else holds the buffer (`dataref`),
 *the entry goes.
 * - Some ends are not reported (TCP frees what was read or acknowledged without a word). The allocator
 *reports them: the entry goes when kfree or kmem_cache_free is given the buffer.
 *
 * A packet may outlive its buffer: pskb_expand_head() copies the data to a larger one and frees the first. So
 * an entry whose buffer was freed by the allocator waits in `moved`, under the sk_buff's address, until the
 *sk_buff is seen with its new buffer, or is freed itself.
 */

struct path {
	u64 flow; /* hash of the addresses and ports, to notice their translation */
	u64 skb;
	u32 packet;
	u32 pid;
	u32 netns;
	u32 ifindex;
	u32 len;
	u32 mark;
	u16 snapshot;
	u16 link;
	u32 ignored; /* sampled out: remembered only so that it is not asked about again */
};

BPF_HASH(skb_map, u64, struct path, SKB_MAP_ENTRIES);
BPF_HASH(moved, u64, struct path, MOVED_ENTRIES);

static __always_inline struct path *path_of(struct state *state, u64 skb, u64 head)
{
	struct path *path = skb_map.lookup(&head);

	if (path || !state->moved)
		return path;
	path = moved.lookup(&skb);
	if (!path)
		return 0;
	struct path copy = *path;
	if (skb_map.update(&head, &copy))
		return 0;
	if (!moved.delete(&skb))
		__sync_fetch_and_add(&state->moved, -1);
	return skb_map.lookup(&head);
}

static __always_inline void path_add(struct state *state, u64 head, struct path *path)
{
	if (skb_map.update(&head, path))
		COUNT(&state->untracked);
	else
		COUNT(&state->tagged);
}

static __always_inline void path_remove(struct state *state, u64 head)
{
	if (!skb_map.delete(&head))
		__sync_fetch_and_add(&state->tagged, -1);
}
