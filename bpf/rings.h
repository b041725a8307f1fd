/* SPDX-License-Identifier: Apache-2.0
 *
 * What is written to the rings: the hops of packets, and what is told once of a packet, a process or a drop.
 */

/* The heading of what is told once. (Each makes room by itself: verifiers before 6.2 lose track of room that a function
 * returns.) */
static __always_inline void head_facts(struct facts *facts, u16 kind, u32 packet, u64 now)
{
	__builtin_memset(facts, 0, sizeof(*facts));
	facts->time = now;
	facts->packet = packet;
	facts->kind = kind;
}

/* The first bytes of the packet. Always 128 are read: behind a packet's data lies skb_shared_info, in the
 * same allocation. `caplen` says how many are the packet's; the tracer passes on no more. */
static __always_inline void send_snapshot(struct state *state, const struct packet *packet,
					  const struct path *path, u64 now)
{
	struct facts *facts = facts_ring.ringbuf_reserve(sizeof(*facts));

	if (!facts) {
		COUNT(&state->facts_lost);
		return;
	}
	head_facts(facts, FACTS_SNAPSHOT, path->packet, now);
	facts->parent = path->parent;
	facts->len = packet->len;
	facts->snapshot = path->snapshot;
	facts->link = packet->link;
	facts->vlan_tpid = packet->vlan_tpid;
	facts->vlan_tci = packet->vlan_tci;
	facts->caplen = packet->caplen < 128 ? packet->caplen : 128;
	bpf_probe_read_kernel(facts->headers, sizeof(facts->headers), (void *)packet->start);
	facts_ring.ringbuf_submit(facts, NO_WAKEUP);
}

/* Names of the processes that were met, each told once. */
struct process {
	u64 comm[2];
};

BPF_TABLE("lru_hash", u32, struct process, processes, 8192);

static __always_inline void send_process(struct state *state, u32 pid, u64 now)
{
	/* A process's name is that of its first thread; other threads call themselves what they like. */
	u64 leader = read_pointer(bpf_get_current_task(), task_struct__group_leader);
	struct process process = {
		.comm = {LOAD(u64, leader + task_struct__comm), LOAD(u64, leader + task_struct__comm + 8)}};
	struct process *known = processes.lookup(&pid);
	struct facts *facts;

	if (known && known->comm[0] == process.comm[0] && known->comm[1] == process.comm[1])
		return;
	facts = facts_ring.ringbuf_reserve(sizeof(*facts));
	if (!facts) {
		COUNT(&state->facts_lost);
		return;
	}
	processes.update(&pid, &process);
	head_facts(facts, FACTS_PROCESS, pid, now);
	__builtin_memcpy(facts->headers, &process, sizeof(process));
	facts_ring.ringbuf_submit(facts, NO_WAKEUP);
}

struct where {
	u16 func;
	u16 kind;
	u16 rank;   /* of an entry (asked.h) */
	u16 untold; /* the program may not ask for the process */
	u32 reason;
	u64 location;
	u64 socket; /* that gave the packet up, where the kernel tells */
	u64 call;   /* where the function's return is traced: the stack pointer at its entry, else 0 */
	void *ctx;  /* the probe's, which leads to the stack */
	u16 drop;   /* this end is a drop */
	u16 freed;  /* and only the stack tells who freed the packet */
	u16 beside; /* this program runs also while those of functions are skipped */
};

/* The state of the TCP socket that a packet belongs to. What stands for a connection that is being made or
 * that is gone (TCP_NEW_SYN_RECV, TCP_TIME_WAIT) begins like a socket, and has no more in common with it. */
static __always_inline u16 tcp_state(u64 socket)
{
	u8 state = socket ? LOAD(u8, socket + sock__skc_state) : 0;
	u16 protocol;

	if (!state || state == 12 || state == 6)
		return state;
	protocol = LOAD(u16, socket + sock__sk_protocol);
	return protocol == 6 || protocol == 262 ? state : 0; /* IPPROTO_TCP, IPPROTO_MPTCP */
}

/* A packet whose end nobody saw, and where it was seen last. */
static __always_inline void send_unseen(struct state *state, const struct path *path, u64 now)
{
	struct facts *facts = facts_ring.ringbuf_reserve(sizeof(*facts));

	COUNT(&state->unseen);
	if (!facts) {
		COUNT(&state->facts_lost);
		return;
	}
	head_facts(facts, FACTS_UNSEEN, path->packet, now);
	facts->link = path->func;
	facts->snapshot = path->protocol;
	facts_ring.ringbuf_submit(facts, NO_WAKEUP);
}

/* How a packet came to be dropped. */
static __always_inline void send_drop(struct state *state, const struct path *path,
				      const struct sk_buff_view *view, const struct where *where, u64 now)
{
	struct facts *facts = facts_ring.ringbuf_reserve(sizeof(*facts));
	u64 socket = where->socket ? where->socket : read_pointer(view->skb, sk_buff__sk);

	if (!facts) {
		COUNT(&state->facts_lost);
		return;
	}
	head_facts(facts, FACTS_DROP, path->packet, now);
	facts->link = path->protocol == 6 ? tcp_state(socket) : 0;
	bpf_get_stack(where->ctx, facts->headers, sizeof(facts->headers), 0);
	facts_ring.ringbuf_submit(facts, NO_WAKEUP);
}

static __always_inline void send_event(struct state *state, struct path *path, u64 now, u64 skb,
				       const struct where *where, u16 flags)
{
	struct event *event;
#ifdef HAVE_FETCH_ADD
	u64 stamp = 0;
	struct record *record = record_open(&stamp);

	if (!record)
		return;
	event = &record->event;
#else
	u32 zero = 0;
	u64 *next = sequence.lookup(&zero);
	u32 seq;

	if (!next)
		return;
	seq = NEXT(next);
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		COUNT(&state->events_lost);
		return;
	}
	event->seq = seq;
	event->cpu = bpf_get_smp_processor_id();
#endif
	event->time = now;
	event->skb = skb;
	event->location = where->location;
	event->packet = path->packet;
	event->netns = path->netns;
	event->ifindex = path->ifindex;
	event->len = path->len;
	event->mark = path->mark;
	event->reason = where->reason;
	event->pid = path->pid;
	event->func = where->func;
	event->snapshot = path->snapshot;
	event->flags = flags;
#ifdef HAVE_FETCH_ADD
	record_close(record, stamp);
#else
	events.ringbuf_submit(event, NO_WAKEUP);
#endif
}
