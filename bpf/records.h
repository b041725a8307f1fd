/* SPDX-License-Identifier: Apache-2.0
 *
 * What travels from the kernel to the tracer, and the maps it travels in.
 *
 * Two kinds: an event is one small record per hop (cpu_rings.h), facts are what is told once per packet (its first bytes),
 * per process (its name) or per drop (the stack that led there). The layouts are those of EVENT_DTYPE and FACTS_DTYPE in
 * bpfpath_nb/schema.py; a test compares them.
 */

struct event {
	u64 time;
	u64 skb;
	u64 location;
	u32 packet;
	u32 seq;
	u32 netns;
	u32 ifindex;
	u32 len;
	u32 mark;
	u32 reason;
	u32 pid;
	u16 func;
	u16 cpu;
	u16 snapshot;
	u16 flags;
};

#define EVENT_ENTRY   1
#define EVENT_END     2
#define EVENT_LAST    4
#define EVENT_CLONE   8
#define EVENT_RETURN  16
#define EVENT_MERGED  32
#define EVENT_SKIPPED 64

struct facts {
	u64 time;
	u32 packet; /* for FACTS_PROCESS: the pid */
	u32 parent;
	u32 len;
	u16 snapshot; /* for FACTS_UNSEEN: the protocol */
	u16 link; /* for FACTS_DROP: the state of the TCP socket; for FACTS_UNSEEN: `func` of the last hop */
	u16 vlan_tpid;
	u16 vlan_tci;
	u16 caplen;
	u16 kind;
	u8 headers[128]; /* for FACTS_PROCESS: comm, 16 bytes; for FACTS_DROP: STACK_DEPTH addresses */
};

#define FACTS_SNAPSHOT 0
#define FACTS_PROCESS  1
#define FACTS_DROP     2
#define FACTS_UNSEEN   3 /* a packet's end was not seen */

#define STACK_DEPTH 16

/* What a probe is. */
#define KIND_ENTRY     1   /* the filter runs here */
#define KIND_END       2   /* the sk_buff is freed here */
#define KIND_NEIGHBOUR 4   /* the sk_buff has to be found through a neighbour */
#define KIND_EXPAND    8   /* the sk_buff gets a buffer of its own (pskb_expand_head) */
#define KIND_DEVICE    16  /* between two devices, or at one */
#define KIND_RECEIVE   32  /* a driver hands the packet up */
#define KIND_HOOK      64  /* netfilter: addresses may be translated */
#define KIND_BIRTH     128 /* a sender's packet is new here */
#define KIND_COPY      256 /* the packet is copied */
#define KIND_RELEASE                                                                                         \
	512 /* the sk_buff lets go of its buffer, which ends the packet where nobody else holds it */
#define KIND_SOCKET 2048 /* on the way to a socket, or read from it */
#define KIND_AGAIN  1024 /* an entry that comes behind others (see asked.h) */

/* Set by the tracer: armed when every probe is in, until then nothing is recorded; closing when the capture
 * ends, then nothing new is taken up, but what is followed may come to its end; calibrating while it measures
 * itself, then only its own packets are looked at, which their mark tells. */
#define DISARMED    0
#define ARMED	    1
#define CLOSING	    2
#define CALIBRATING 3

#define MARK_REFUSED 0x5B1D74C6u /* as the filter says */
#define MARK_TAKEN   0x5B1D74C7u

/* The capture as a whole. Each program looks here once, and first. User space maps it. */
struct state {
	u64 armed;
	u64 tagged;  /* packets in skb_map and moved: nothing tagged, nothing paid */
	u64 moved;   /* of these, those in `moved` */
	u64 crowded; /* and those that found their place taken (skb_map.h) */
	u64 packets; /* numbers given out */
	u64 matched; /* packets the filter took, for sampling */
	u64 sampled_out;
	u64 opened;	 /* calls that were recorded, where returns are traced */
	u64 closed;	 /* of these, those whose return was seen */
	u64 forgotten;	 /* and those whose return cannot come any more */
	u64 untracked;	 /* packets that found skb_map full */
	u64 unseen;	 /* packets whose end nobody saw: their buffer was in use again */
	u64 events_lost; /* where the CPU's ring does not count them (cpu_rings.h) */
	u64 facts_lost;
	u64 timed; /* hops whose time was taken (note_time) */
	u64 spent; /* that these took, in ns */
};

/* A map with one value, which user space maps, and that value's address: no look-up, and nothing to check. The tracer
 * writes it in the place of a number that stands for it (toolchain.py). (To bcc it is so many bytes, since it makes code
 * for each member, and takes a type in an array's size for another member.) */
#define ONE_VALUE(type, map)                                                                                 \
	enum { map##_size = sizeof(type) };                                                                  \
	struct map##_value {                                                                                 \
		u8 bytes[map##_size];                                                                        \
	};                                                                                                   \
	BPF_F_TABLE("array", u32, struct map##_value, map, 1, MAPPED)
#define ONLY_VALUE(map)                                                                                      \
	({                                                                                                   \
		void *value_;                                                                                \
		asm("%0 = %1 ll" : "=r"(value_) : "i"(ONLY_VALUE_##map));                                    \
		value_;                                                                                      \
	})

ONE_VALUE(struct state, state_map);

static __always_inline struct state *state_of_capture(void)
{
	return ONLY_VALUE(state_map);
}

BPF_RINGBUF_OUTPUT(facts_ring, FACTS_PAGES);

/* The tracer reads all rings by itself, every few milliseconds; waking it for each record would cost more
 * than the record. */
#define NO_WAKEUP 1 /* BPF_RB_NO_WAKEUP */

/* TOTAL_STORE_ORDER is defined where CPUs see each other's stores in their order, and load in theirs: on x86. Elsewhere
 * an exchange or another atomic that returns the old value orders what stands before and behind it. */

/* Counter that several CPUs, and interrupts on one of them, may raise at once. Kernels before 5.12 have no
 * atomic that returns the old value. */
#ifdef HAVE_FETCH_ADD
#define NEXT(counter) __sync_fetch_and_add(counter, 1)
#else
#define NEXT(counter)                                                                                        \
	({                                                                                                   \
		u64 old_ = *(counter);                                                                       \
		__sync_fetch_and_add(counter, 1);                                                            \
		old_;                                                                                        \
	})
#endif
#define COUNT(counter) __sync_fetch_and_add(counter, 1)

/* What a hop costs, where it is: of the first ones each is timed, then of 64 one, chosen by its time. What took that
 * long was interrupted. */
#define ALL_TIMED     256
#define TIMED_BITS    6
#define LONGEST_TIMED 32768 /* ns */

static __always_inline void note_time(struct state *state, u64 begun)
{
	u64 took;

	if (begun * 0x9E3779B97F4A7C15ull >> (64 - TIMED_BITS) && state->timed >= ALL_TIMED)
		return;
	took = bpf_ktime_get_ns() - begun;
	if (took >= LONGEST_TIMED)
		return;
	COUNT(&state->timed);
	__sync_fetch_and_add(&state->spent, took);
}

/* What the kernel answers. */
#define ENOENT 2
#define EBUSY  16
#define EEXIST 17
