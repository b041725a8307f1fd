/* SPDX-License-Identifier: Apache-2.0
 *
 * The packets that are followed, by the address of their buffer (identity.h): skb_map.
 *
 * Each probe looks here, and with a hash table of the kernel that is half of what it does: a call, a hash over the
 * bytes of the key, a chain. So in front of the table each packet has one place, at a hash of its address, in an array
 * that is reached without a call. Only a packet that finds its place taken goes to the table behind
 * (`crowded`), which nobody looks at while it is empty.
 *
 *   head --hash--> slots [ head | path ]          the packet's own?  then this is its path
 *                        [ 0    |      ]          nobody's
 *                        [ other| path ] ---> skb_map, where anything is crowded
 *
 * A place is taken and given back by an atomic exchange of its head, so that of several CPUs one does it. Between taking
 * and having written the path it is BUSY; who meets that waits for as long as the writing takes, or else would give a
 * clone's buffer a second number. For the same reason both parts are looked at by whoever puts a packet into either, once
 * it is there. Kernels before 5.12 have no such exchange, and the table alone.
 */

/* Where looking is no call, and the kernel tells for which socket a dropped packet was: plain_hop() in hop.h. */
#if defined(HAVE_CAST) && !defined(SOCKET_UNTOLD)
#define PLAIN_HOPS
#endif

struct path {
	u64 flow; /* hash of the addresses and ports, to notice their translation */
	u64 skb;
	u64 seen;    /* when, last */
	u64 dev;     /* that `netns` and `ifindex` were read from, else 0 */
	u32 parent;  /* number of the packet it was copied or cut from, else 0 */
	u32 entered; /* where it was met first */
	u32 packet;  /* its number; 0: is_ignored() */
	u32 pid;
	u32 netns;
	u32 ifindex;
	u32 len;
	u32 mark;
	u32 parted; /* another buffer carries the number on, or did */
	u16 snapshot;
	u16 func; /* where it was seen last */
	u16 kind; /* of the probe that saw it last */
	u8 link;
	u8 protocol; /* of IP */
#ifdef PLAIN_HOPS
	u32 network; /* where its IPv4 header was in the buffer when `flow` was made of it; 0: it had none, or options */
	u64 ip[2]; /* the bytes of that header from the 8th on */
#else
	u32 drops;  /* its socket's count of these when the packet was given to it (note_tcp_drop) */
	u64 socket; /* that it was given to, where the kernel does not tell that of a drop; else 0 */
#endif
};

/* Sampled out: remembered only so that it is not asked about again. */
static __always_inline int is_ignored(const struct path *path)
{
	return !path->packet;
}

BPF_HASH(skb_map, u64, struct path, SKB_MAP_ENTRIES);

#ifdef HAVE_FETCH_ADD
struct slot {
	u64 head;
	struct path path;
};

#define BUSY	1  /* no buffer's address, nor is 0 */
#define PATIENT 64 /* looks at a BUSY place */

/* One value, and not one for each: so a place is found by adding to an address. */
struct slots {
	struct slot at[1 << SLOTS_BITS];
};

ONE_VALUE(struct slots, slots);

static __always_inline struct slot *slot_of(u64 head)
{
	struct slots *all = ONLY_VALUE(slots);

	return &all->at[head * 0x9E3779B97F4A7C15ull >> (64 - SLOTS_BITS)];
}

/* Read before the path is. */
static __always_inline u64 head_of(struct slot *slot)
{
#ifdef TOTAL_STORE_ORDER
	return *(volatile u64 *)&slot->head;
#else
	return __sync_fetch_and_add(&slot->head, 0);
#endif
}
#endif

static __always_inline struct path *path_at(const struct state *state, u64 head)
{
#ifdef HAVE_FETCH_ADD
	struct slot *slot;

	if (head <= BUSY)
		return 0;
	slot = slot_of(head);
	if (head_of(slot) == head)
		return &slot->path;
	if (!state->crowded)
		return 0;
#endif
	return skb_map.lookup(&head);
}

/* 0, or an error of the kernel's: EEXIST where the packet is followed already. */
static __always_inline int path_put(struct state *state, u64 head, struct path *path)
{
	int error;
#ifdef HAVE_FETCH_ADD
	struct slot *slot = slot_of(head);
	u64 there;

	if (head <= BUSY)
		return -ENOENT;
	there = __sync_val_compare_and_swap(&slot->head, 0, BUSY);
	if (!there) {
		if (state->crowded && skb_map.lookup(&head)) {
			__sync_lock_test_and_set(&slot->head, 0);
			return -EEXIST;
		}
		slot->path = *path;
		__sync_lock_test_and_set(&slot->head, head);
		return 0;
	}
	for (int look = 0; look < PATIENT && there == BUSY; look++)
		there = *(volatile u64 *)&slot->head;
	if (there == head)
		return -EEXIST;
	if (there == BUSY)
		return -EBUSY;
#endif
#ifdef HAVE_FETCH_ADD
	COUNT(&state->crowded); /* before it is there, or who looks for it at once would not look here */
#endif
	error = skb_map.insert(&head, path);
#ifdef HAVE_FETCH_ADD
	/* Its place was given back meanwhile, and another CPU has put the packet there. */
	if (!error && *(volatile u64 *)&slot->head == head) {
		skb_map.delete(&head);
		error = -EEXIST;
	}
	if (error)
		__sync_fetch_and_add(&state->crowded, -1);
#endif
	return error;
}

/* 0, or not where it is not followed any more: another CPU was faster. What the path was may be another's then. */
static __always_inline int path_take(struct state *state, u64 head)
{
#ifdef HAVE_FETCH_ADD
	struct slot *slot;

	if (head <= BUSY)
		return -ENOENT;
	slot = slot_of(head);
	if (slot->head == head && __sync_val_compare_and_swap(&slot->head, head, 0) == head)
		return 0;
	if (!state->crowded || skb_map.delete(&head))
		return -ENOENT;
	__sync_fetch_and_add(&state->crowded, -1);
	return 0;
#else
	return skb_map.delete(&head);
#endif
}
