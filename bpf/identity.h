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
 * - Some ends are not reported: a socket's reader frees what it has read without a word, and so does TCP with
 *what was acknowledged. The allocator reports them: the entry goes when kfree or kmem_cache_free is given the
 *buffer, and the stack tells who did it.
 *
 * A packet may outlive its buffer: pskb_expand_head() copies the data to a larger one and lets go of the
 *first. The entry then waits in `moved`, under the sk_buff's address, until the sk_buff is seen with its new
 *buffer, or is freed itself. Where pskb_expand_head() can be probed, that is how it is noticed, and where the
 *first buffer stays with a clone (what TCP keeps to send again) both carry the number on; else the
 *allocator's call with pskb_expand_head() on the stack tells.
 */

struct path {
	u64 flow; /* hash of the addresses and ports, to notice their translation */
	u64 skb;
	u64 seen; /* when, last */
	u32 packet;
	u32 pid;
	u32 netns;
	u32 ifindex;
	u32 len;
	u32 mark;
	u16 snapshot;
	u16 link;
	u16 func;    /* where it was seen last */
	u8 protocol; /* of IP */
	u8 ignored;  /* sampled out: remembered only so that it is not asked about again */
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
	if (skb_map.update(&head, path)) {
		COUNT(&state->untracked);
		return 0;
	}
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

/* Who frees the buffer, from the stack: the first function beyond those of the allocator and of
 * net/core/skbuff.c, which lie together in the kernel's text. */
#define STACK_DEPTH 16

struct freer {
	u64 location;
	u64 expanding; /* pskb_expand_head() does: the packet goes on */
};

static __always_inline void find_freer(void *ctx, struct freer *freer)
{
#ifdef SKBUFF_START
	u64 stack[STACK_DEPTH] = {};
	int inside = 0;

	if (bpf_get_stack(ctx, stack, sizeof(stack), 0) < 0)
		return;
#pragma unroll
	for (int i = 0; i < STACK_DEPTH; i++) {
		if (stack[i] - EXPAND_HEAD_START < EXPAND_HEAD_SIZE)
			freer->expanding = 1;
		if (stack[i] - SKBUFF_START < SKBUFF_SIZE) {
			inside = 1;
		} else if (inside == 1 && stack[i]) {
			freer->location = stack[i];
			inside = 2;
		}
	}
#endif
}
