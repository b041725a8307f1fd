/* SPDX-License-Identifier: Apache-2.0
 *
 * One packet, one number.
 *
 * An sk_buff's address says little: the kernel reuses it within microseconds, and clones of one packet have
 * several. What the clones share, and what no living packet shares with another, is the buffer of the
 * packet's data, `skb->head`:
 *
 *   sk_buff A ---+                       skb_map: head -> struct path
 *                +--> head [ headers | data | ... | skb_shared_info: dataref ]
 *   clone   B ---+
 *
 * So skb_map is keyed by `head`. A packet gets its number where the filter first takes it, and keeps it until
 * its buffer is freed. That is seen in several ways, since none alone sees all:
 *
 * - kfree_skb and consume_skb report the end of an sk_buff. When nobody else holds the buffer (`dataref`),
 *   the entry goes.
 * - Some ends are not reported: a socket's reader frees what it has read without a word, and so does TCP with
 *   what was acknowledged. The allocator reports them: the entry goes when kfree or kmem_cache_free is given
 *   the buffer, and the stack tells who did it.
 * - Some buffers are not the allocator's: drivers take them from pages (`head_frag`), which go without a word
 *   as well. There, what a driver hands up and what was not between two devices just before is another packet
 *   in the same place.
 *
 *   Where functions can be probed, skb_release_data() is, through which all of these go; the allocator serves the whole
 *   machine, and all of it would pay.
 *
 * And none of these is certain: the kernel skips a program that is interrupted by itself. So an sk_buff that no other
 * shares its buffer with (`cloned`), and that is not the one that the buffer's packet was seen with last, is a new
 * packet in the same place. The end of the one before is counted as unseen, and where it was last seen on its way to a
 * socket, it was read. (is_reused)
 *
 * A packet may outlive its buffer: pskb_expand_head() copies the data to another one and lets go of the
 * first, which may stay with a clone (what TCP keeps to send again); then both carry the number on, and the
 * end of either is not that of the packet's data (`parted`). Where that function can be probed, the entry is
 * copied to `moved`, under the sk_buff's address, until the sk_buff is seen with its new buffer. Elsewhere the
 * allocator's call with pskb_expand_head() on the stack tells of it, and an unknown buffer under an sk_buff that
 * was followed just now (`heads`) is its new one, unless the sk_buff may serve another packet (carry_on).
 *
 * Some packets are made of others, and get numbers of their own with their `parent`: the segments of a large packet
 * (GSO), fragments, copies. They have new buffers, so what they are made of has to be seen by their circumstances:
 * they appear in mid-path, on the CPU on which the large packet was seen just before, further on than where that one
 * was met first, between the same addresses, and for segments and copies with the same ports. Segments are recognized
 * only beneath a packet that is known to be cut (`gso_size`), fragments by their header, and those of IPv4 by its
 * identification, also where the first of them took its time; copies only after one of the functions that copy, where
 * these can be probed; elsewhere a copy is a packet of its own, without a parent.
 * (`sources`)
 *
 * And some end in others: merging.h.
 */

BPF_HASH(moved, u64, struct path, MOVED_ENTRIES);

static __always_inline struct path *path_of(struct state *state, u64 skb, u64 head)
{
	struct path *path = path_at(state, head);

	if (path || !state->moved)
		return path;
	path = moved.lookup(&skb);
	if (!path)
		return 0;
	if (path_put(state, head, path)) {
		COUNT(&state->untracked);
		return 0;
	}
	if (!moved.delete(&skb))
		__sync_fetch_and_add(&state->moved, -1);
	return path_at(state, head);
}

/* An sk_buff that ends waits for no other buffer: pskb_expand_head() may have failed to give it one. */
static __always_inline void forget_moved(struct state *state, u64 skb)
{
	if (!state->moved || moved.delete(&skb))
		return;
	__sync_fetch_and_add(&state->moved, -1);
	__sync_fetch_and_add(&state->tagged, -1);
}

/* The number of a new packet, given once. Where the counter's old value cannot be had, a number that another
 * CPU took at the same moment is found taken. */
#ifndef HAVE_FETCH_ADD
BPF_TABLE("lru_hash", u32, u8, taken, 65536);
#endif

static __always_inline u32 next_number(struct state *state)
{
#ifdef HAVE_FETCH_ADD
	return NEXT(&state->packets) + 1;
#else
	u8 one = 1;
#pragma unroll
	for (int try = 0; try < 4; try++) {
		u32 number = NEXT(&state->packets) + 1;

		if (!taken.insert(&number, &one))
			return number;
	}
	return 0;
#endif
}

static __always_inline void path_remove(struct state *state, u64 head)
{
	if (!path_take(state, head))
		__sync_fetch_and_add(&state->tagged, -1);
}

#ifndef EXPAND_PROBED
/* The buffer of each sk_buff that is followed, as last seen. */
BPF_TABLE("lru_hash", u64, u64, heads, 16384);
#endif
#define FRESH 10000000 /* ns in which a packet that got a new buffer is seen again */

static __always_inline void remember_head(u64 skb, u64 head)
{
#ifndef EXPAND_PROBED
	heads.update(&skb, &head);
#endif
}

static __always_inline void forget_head(u64 skb)
{
#ifndef EXPAND_PROBED
	heads.delete(&skb);
#endif
}

static __always_inline u64 *former_head(u64 skb)
{
#ifndef EXPAND_PROBED
	return heads.lookup(&skb);
#else
	return 0;
#endif
}

/* The path of an sk_buff that was seen with another buffer just now. It goes on where nobody but it can: the
 * same sk_buff was the last one seen, and its addresses are the same, or a hook of netfilter may have
 * translated them. What a driver hands up was between two devices (veth gives what it hands to GRO a buffer of
 * its own). And what was on its way to a socket may have been read without a word: where the sk_buff sets out from a
 * sender then, or is at a device, or has other addresses, it is another packet's. */
static __always_inline struct path *carry_on(struct state *state, u64 former, u64 skb, u64 head, u64 flow,
					     u16 kind, u64 now)
{
	struct path *path = path_at(state, former);
	u32 parted;

	if (!path || path->skb != skb || now - path->seen > FRESH)
		return 0;
	if (path->kind & KIND_SOCKET && kind & (KIND_BIRTH | KIND_DEVICE)) {
		forget_head(skb);
		return 0;
	}
	if (kind & KIND_BIRTH)
		return 0;
	if (flow != path->flow && (path->kind & (KIND_HOOK | KIND_SOCKET)) != KIND_HOOK)
		return 0;
	if (kind & KIND_RECEIVE && !(path->kind & KIND_DEVICE))
		return 0;
	parted = path->parted;
	path->parted = 1;
	if (path_put(state, head, path)) {
		path->parted = parted;
		return 0;
	}
	/* What stays behind is another sk_buff's, of which nothing is known. */
	path->skb = 0;
	path->netns = 0;
	path->ifindex = 0;
	path->dev = 0;
	COUNT(&state->tagged);
	return path_at(state, head);
}

/* A driver hands a packet up in pages, and the buffer's packet was not between two devices just before. Of clones one
 * may be at a socket while the next one is handed up. */
static __always_inline int is_handed_up_anew(const struct path *path, const struct sk_buff_view *view,
					     u16 kind)
{
	return kind & KIND_RECEIVE && !(path->kind & KIND_DEVICE) && BITS(view, sk_buff__head_frag) &&
	       !BITS(view, sk_buff__cloned);
}

/* What was received last, and is with a sender again, has not come this way: on the loopback interface a packet has lost
 * its sender, and to a device of another namespace it would have been sent first. (A bridge sends on what still has its
 * sender, but in its own namespace.) This is known only where its reception was the last that was seen of it. */
#define LOOPBACK_IFINDEX 1
#ifndef FUNC_tc_ingress
#define FUNC_tc_ingress 0xffff
#endif

static __always_inline int is_elsewhere(const struct path *path, const struct sk_buff_view *view)
{
	u32 netns;

	if (!(path->kind & KIND_RECEIVE) && path->func != FUNC_tc_ingress)
		return 0;
	if (path->ifindex == LOOPBACK_IFINDEX)
		return 1;
	netns = read_u32(read_pointer(sk_buff_device(view), net_device__nd_net), net__ns_inum);
	return netns >= NETNS_LOWEST && path->netns && netns != path->netns;
}

/* Whether a buffer that is followed is another packet's by now. An sk_buff that shares its buffer, or ever did, says
 * so; else there is one only, and a packet that is tunnelled or sent on keeps it. But the same sk_buff and the same buffer
 * may have come together again by chance. Where a sender's packets are new (the first ranks, asked.h) what was at a
 * socket before does not come, but with IPVS, whose packets have no sender; nor does what was received come there late,
 * but from a device, which tunnels it. Behind, up to the device, these are met where the programs at the first ranks
 * were skipped (skipped.h). */
#define RANK_NEW    2
#define RANK_DEVICE 6
#define LATE	    1000000 /* ns */

static __always_inline int is_reused(const struct path *path, const struct sk_buff_view *view, u32 rank,
				     u64 now)
{
	if (BITS(view, sk_buff__cloned) || (!path->skb && !path->parted))
		return 0;
	if (path->skb != view->skb)
		return 1;
	if (rank - 1 >= RANK_DEVICE)
		return 0;
	if (path->kind & KIND_SOCKET || is_elsewhere(path, view))
		return read_pointer(view->skb, sk_buff__sk) != 0;
	return rank - 1 < RANK_NEW && !(path->kind & (KIND_BIRTH | KIND_DEVICE)) && now - path->seen > LATE;
}

/* Who frees the buffer, from the stack: the first function beyond those of the allocator and of
 * net/core/skbuff.c, which lie together in the kernel's text. */
struct freer {
	u64 location;
	u64 expanding; /* pskb_expand_head() does: the packet goes on */
};

/* Each frame costs the kernel a search, and the first few tell, most of the time: behind the tracepoint's own and the
 * allocator's, or at once behind skb_release_data(). */
#define NEAR_FRAMES 8

/* Looks at so many frames, for which the caller has room: the stack of a program is small. */
static __always_inline void find_freer(void *ctx, u64 *frames, u32 count, struct freer *freer)
{
#ifdef SKBUFF_START
	int inside = 0;

	if (bpf_get_stack(ctx, frames, count * sizeof(*frames), 0) < 0)
		return;
#pragma unroll
	for (int i = 0; i < count; i++) {
		if (frames[i] - EXPAND_HEAD_START < EXPAND_HEAD_SIZE)
			freer->expanding = 1;
		if (frames[i] - SKBUFF_START < SKBUFF_SIZE) {
			inside = 1;
		} else if (inside && frames[i]) {
			freer->location = frames[i];
			return;
		}
	}
#endif
}
