/* SPDX-License-Identifier: Apache-2.0
 *
 * A hop: one packet seen in one function.
 *
 * Every probe ends here. The sk_buff is read once, as a whole, into the stack: its members' offsets come from
 * the running kernel's BTF as macros named <struct>__<member>. Nothing is read through the pointer of a
 * packet that is not followed, but its `head`.
 */

/* Inode numbers of namespaces come from the upper end (PROC_DYNAMIC_FIRST and the fixed ones just below it).
 * Where `skb->dev` shares its place with something else (udp's dev_scratch, TCP's rbnode) what is read
 * through it is not a namespace. */
#define NETNS_LOWEST 0xEFFF0000u

static __always_inline u64 read_pointer(u64 from, u32 offset)
{
	u64 value = 0;

	if (from)
		bpf_probe_read_kernel(&value, sizeof(value), (void *)(from + offset));
	return value;
}

static __always_inline u32 read_u32(u64 from, u32 offset)
{
	u32 value = 0;

	if (from)
		bpf_probe_read_kernel(&value, sizeof(value), (void *)(from + offset));
	return value;
}

struct place {
	u32 netns;
	u32 ifindex;
};

static __always_inline void place_of(struct place *place, const struct sk_buff_copy *copy)
{
	u64 dev = copy->dev;
	u64 net = read_pointer(dev, net_device__nd_net);
	u32 netns = read_u32(net, net__ns_inum);

	place->netns = 0;
	place->ifindex = 0;
	if (netns >= NETNS_LOWEST) {
		place->netns = netns;
		place->ifindex = read_u32(dev, net_device__ifindex);
		return;
	}
	net = read_pointer(read_pointer(copy->skb, sk_buff__sk), sock__skc_net);
	netns = read_u32(net, net__ns_inum);
	if (netns >= NETNS_LOWEST)
		place->netns = netns;
}

/* Keep to the namespaces and interfaces that were asked for. (bcc takes no map function inside a macro.) */
#ifdef ONLY_NAMESPACES
BPF_HASH(wanted_namespaces, u32, u8, 4096);
#endif
#ifdef ONLY_INTERFACES
BPF_HASH(wanted_interfaces, struct place, u8, 4096);
#endif

static __always_inline int namespace_wanted(struct place *place)
{
#ifdef ONLY_NAMESPACES
	return wanted_namespaces.lookup(&place->netns) != 0;
#else
	return 1;
#endif
}

static __always_inline int interface_wanted(struct place *place)
{
#ifdef ONLY_INTERFACES
	return wanted_interfaces.lookup(place) != 0;
#else
	return 1;
#endif
}

struct header {
	u64 addresses; /* hashed; 0 where there is no IP header */
	u8 protocol;
	u8 fragment;
};

/* The addresses and ports as they stand in the packet now, hashed. TTL, checksums and lengths stay out: they
 * change at every router. 0 where there is no IP header to be seen. */
static __always_inline u64 flow_of(const struct sk_buff_copy *copy, struct header *seen)
{
	u64 w[5] = {};
	u16 network = MEMBER(copy, u16, sk_buff__network_header);
	u64 at = MEMBER(copy, u64, sk_buff__head) + network;
	u64 hash;
	u32 ports = 0;
	u32 transport;
	u8 *header = (u8 *)w;
	u8 protocol;

	if (!network || network == 0xffff)
		return 0;
	if (bpf_probe_read_kernel(w, sizeof(w), (void *)at))
		return 0;
	if (header[0] >> 4 == 4) {
		protocol = header[9];
		seen->protocol = protocol;
		seen->fragment = (header[6] & 0x3f) || header[7]; /* more fragments, or an offset */
		transport = (header[0] & 15) * 4;
		/* Later fragments have no ports. */
		if ((header[6] & 0x1f) || header[7])
			protocol = 0;
		hash = (w[1] >> 32) * 0x9E3779B97F4A7C15ull ^ (w[2] & 0xffffffff) * 0xC2B2AE3D27D4EB4Full;
	} else if (header[0] >> 4 == 6) {
		protocol = header[6];
		seen->protocol = protocol;
		seen->fragment = protocol == 44;
		transport = 40;
		hash = (w[1] * 0x9E3779B97F4A7C15ull ^ w[2]) * 0x165667B19E3779F9ull ^
		       (w[3] * 0xC2B2AE3D27D4EB4Full ^ w[4]) * 0x27D4EB2F165667C5ull;
	} else {
		return 0;
	}
	seen->addresses = hash;
	if (protocol == 6 || protocol == 17 || protocol == 132 || protocol == 33 || protocol == 136)
		bpf_probe_read_kernel(&ports, sizeof(ports), (void *)(at + transport));
	hash = (hash ^ ports) * 0x9E3779B97F4A7C15ull ^ protocol;
	return hash ? hash : 1;
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
	facts->time = now;
	facts->packet = path->packet;
	facts->parent = path->parent;
	facts->len = packet->len;
	facts->snapshot = path->snapshot;
	facts->link = packet->link;
	facts->vlan_tpid = packet->vlan_tpid;
	facts->vlan_tci = packet->vlan_tci;
	facts->caplen = packet->caplen < 128 ? packet->caplen : 128;
	facts->kind = FACTS_SNAPSHOT;
	bpf_probe_read_kernel(facts->headers, sizeof(facts->headers), (void *)packet->start);
	facts_ring.ringbuf_submit(facts, NO_WAKEUP);
}

/* Names of the processes that were met, each told once. */
struct process {
	u64 comm[2];
};

BPF_TABLE("lru_hash", u32, struct process, processes, 8192);

static __always_inline void send_process(struct state *state, u64 leader, u32 pid, u64 now)
{
	struct process process = {};
	struct process *known = processes.lookup(&pid);
	struct facts *facts;

	bpf_probe_read_kernel(&process, sizeof(process), (void *)(leader + task_struct__comm));
	if (known && known->comm[0] == process.comm[0] && known->comm[1] == process.comm[1])
		return;
	facts = facts_ring.ringbuf_reserve(sizeof(*facts));
	if (!facts) {
		COUNT(&state->facts_lost);
		return;
	}
	processes.update(&pid, &process);
	__builtin_memset(facts, 0, sizeof(*facts));
	facts->time = now;
	facts->packet = pid;
	facts->kind = FACTS_PROCESS;
	__builtin_memcpy(facts->headers, &process, sizeof(process));
	facts_ring.ringbuf_submit(facts, NO_WAKEUP);
}

struct where {
	u16 func;
	u16 kind;
	u32 reason;
	u64 location;
	u64 socket; /* that gave the packet up, where the kernel tells */
	u64 call;   /* where the function's return is traced: the stack pointer at its entry, else 0 */
	void *drop; /* the probe's context where this end is a drop, else 0 */
};

/* The state of the TCP socket that a packet belongs to. What stands for a connection that is being made or
 * that is gone (TCP_NEW_SYN_RECV, TCP_TIME_WAIT) begins like a socket, and has no more in common with it. */
static __always_inline u16 tcp_state(u64 socket)
{
	u8 state = 0;
	u16 protocol = 0;

	if (!socket || bpf_probe_read_kernel(&state, sizeof(state), (void *)(socket + sock__skc_state)))
		return 0;
	if (state == 12 || state == 6)
		return state;
	bpf_probe_read_kernel(&protocol, sizeof(protocol), (void *)(socket + sock__sk_protocol));
	return protocol == 6 || protocol == 262 ? state : 0; /* IPPROTO_TCP, IPPROTO_MPTCP */
}

/* How a packet came to be dropped. */
static __always_inline void send_drop(struct state *state, const struct path *path,
				      const struct sk_buff_copy *copy, const struct where *where, u64 now)
{
	struct facts *facts = facts_ring.ringbuf_reserve(sizeof(*facts));
	u64 socket = where->socket ? where->socket : read_pointer(copy->skb, sk_buff__sk);

	if (!facts) {
		COUNT(&state->facts_lost);
		return;
	}
	__builtin_memset(facts, 0, sizeof(*facts));
	facts->time = now;
	facts->packet = path->packet;
	facts->kind = FACTS_DROP;
	facts->link = path->protocol == 6 ? tcp_state(socket) : 0;
	bpf_get_stack(where->drop, facts->headers, sizeof(facts->headers), 0);
	facts_ring.ringbuf_submit(facts, NO_WAKEUP);
}

static __always_inline void send_event(struct state *state, struct path *path, u64 now, u64 skb,
				       const struct where *where, u16 flags)
{
	u32 zero = 0;
	u64 *next = sequence.lookup(&zero);
	struct event *event;
	u32 seq;

	if (!next)
		return;
	seq = NEXT(next);
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		COUNT(&state->events_lost);
		return;
	}
	event->time = now;
	event->skb = skb;
	event->location = where->location;
	event->packet = path->packet;
	event->seq = seq;
	event->netns = path->netns;
	event->ifindex = path->ifindex;
	event->len = path->len;
	event->mark = path->mark;
	event->reason = where->reason;
	event->pid = path->pid;
	event->func = where->func;
	event->cpu = bpf_get_smp_processor_id();
	event->snapshot = path->snapshot;
	event->flags = flags;
	events.ringbuf_submit(event, NO_WAKEUP);
}

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
	u32 zero = 0;
	u64 *armed = armed_map.lookup(&zero);
	u64 skb;

	if (!call || !armed || *armed == DISARMED)
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
	path.pid = read_u32(bpf_get_current_task(), task_struct__tgid);
	send_event(state, &path, bpf_ktime_get_ns(), skb, &where, EVENT_RETURN);
	return 1;
}
#endif

/* The packets that others may be made of just now (see identity.h): those that are cut into segments, or copied, by
 * flow and CPU; those that may be cut into fragments, which are large and not TCP's, by addresses and CPU. */
struct source {
	u32 packet;
	u32 seen; /* us; odd: it is copied */
	u32 entered;
};

#define LARGE  1280
#define US(ns) ((u32)((ns) >> 10) & ~1u)

BPF_TABLE("lru_hash", u64, struct source, sources, 4096);

static __always_inline u64 source_key(u64 hash)
{
	return hash ^ (u64)(bpf_get_smp_processor_id() + 1) * 0x9E3779B97F4A7C15ull;
}

static __always_inline int is_fresh(const struct source *source, u64 now)
{
	return US(now) - (source->seen & ~1u) < US(FRESH);
}

static __always_inline int is_gso(const struct sk_buff_copy *copy)
{
	return (read_u32(MEMBER(copy, u64, sk_buff__head),
			 MEMBER(copy, u32, sk_buff__end) + skb_shared_info__gso_size) &
		0xffff) != 0;
}

static __always_inline void note_source(const struct path *path, const struct sk_buff_copy *copy,
					const struct header *header, u16 kind, u64 now)
{
	struct source source = {.packet = path->packet, .seen = US(now), .entered = path->entered};
	struct source *known;
	u64 key = 0;

	if (!header->addresses)
		return;
	if (kind & KIND_COPY) {
		source.seen |= 1;
		key = source_key(path->flow);
	} else if (MEMBER(copy, u32, sk_buff__data_len) && is_gso(copy)) {
		key = source_key(path->flow);
	} else if (path->len > LARGE && header->protocol != 6 && !header->fragment) {
		key = source_key(header->addresses);
	}
	if (!key)
		return;
	known = sources.lookup(&key);
	if (known && path->parent && path->parent == known->packet && is_fresh(known, now))
		return; /* there may be more of its kind to come */
	sources.update(&key, &source);
}

/* A function at an interface, as one number. */
static __always_inline u32 entered_at(const struct where *where, const struct place *place)
{
	return where->func * 0x9E3779B1u ^ place->ifindex * 0x85EBCA77u ^ place->netns;
}

/* A sender writes one packet of a flow after the other. The next one is no segment of the last: it begins above the
 * place where packets are cut, or where the last one began, or is to be cut itself, or is TCP's, which sends one of a
 * pair of sk_buffs (fclone). */
static __always_inline u32 parent_of(const struct sk_buff_copy *copy, const struct header *header, u64 flow,
				     u16 kind, u32 entered, u64 now)
{
	struct source *source;
	u64 key = source_key(header->fragment ? header->addresses : flow);

	if (!header->addresses || kind & KIND_RECEIVE)
		return 0;
	source = sources.lookup(&key);
	if (!source || !is_fresh(source, now))
		return 0;
	if (!(source->seen & 1) &&
	    (kind & KIND_BIRTH || source->entered == entered || BITS(copy, sk_buff__fclone) || is_gso(copy)))
		return 0;
	return source->packet;
}

/* Buffers of packets that found skb_map full, and when: a packet is counted once, and not taken up in the middle of
 * its way. */
BPF_TABLE("lru_hash", u64, u64, refused, 4096);

/* A packet that the filter takes gets its number. */
static __always_inline struct path *enter(struct state *state, const struct sk_buff_copy *copy,
					  struct place *place, u64 now, int taken)
{
	struct path path = {};
	u64 head = MEMBER(copy, u64, sk_buff__head);
	int error;

	if (!taken && (!namespace_wanted(place) || !interface_wanted(place)))
		return 0;
	if (state->untracked) {
		u64 *when = refused.lookup(&head);

		if (when && now - *when < FRESH)
			return 0;
	}
#if SAMPLE > 1
	path.ignored = NEXT(&state->matched) % SAMPLE != 0;
#endif
	if (!path.ignored) {
#ifdef PACKETS_LIMIT
		if (state->packets >= PACKETS_LIMIT)
			return 0;
#endif
		path.packet = next_number(state);
	}
	/* A clone on another CPU may have been faster; then the packet has its number. */
	error = skb_map.insert(&head, &path);
	if (!error) {
		COUNT(&state->tagged);
		if (path.ignored)
			COUNT(&state->sampled_out);
	} else if (error != -17) { /* EEXIST */
		COUNT(&state->untracked);
		refused.update(&head, &now);
	}
	return skb_map.lookup(&head);
}

/* Whether the buffer goes with this sk_buff: nobody else refers to it. As skb_release_data() reckons: the
 * header of a packet whose payload is shared (`nohdr`) holds a reference of its own in the upper half. */
static __always_inline int is_last(const struct sk_buff_copy *copy)
{
	u32 end, bias;

	if (!BITS(copy, sk_buff__cloned))
		return 1;
	end = MEMBER(copy, u32, sk_buff__end);
	bias = BITS(copy, sk_buff__nohdr) ? (1 << 16) + 1 : 1;
	return read_u32(MEMBER(copy, u64, sk_buff__head), end + skb_shared_info__dataref) == bias;
}

/* 1 where a call was opened: the function's return is of interest. */
static __always_inline int hop(void *tc, u64 skb, struct where where)
{
	u32 zero = 0;
	struct state *state = state_map.lookup(&zero);
	u64 *armed = armed_map.lookup(&zero);
	struct sk_buff_copy copy;
	struct packet packet;
	struct place place;
	struct path *path;
	u64 now, head, task, flow = 0;
	u64 *former = 0;
	u32 pid, translated, entry, asked, mark = 0;
	u16 flags = 0;
	struct header header = {};
	int opened = 0;

	if (!state || !armed || *armed == DISARMED || !skb)
		return 0;
	if (*armed == CALIBRATING) {
		mark = tc ? ((struct __sk_buff *)tc)->mark : 0;
		if (mark != MARK_REFUSED && mark != MARK_TAKEN)
			return 0;
	}
	entry = where.kind & KIND_ENTRY && (*armed == ARMED || *armed == CALIBRATING);
	if (!entry && !state->tagged)
		return 0;
	head = read_pointer(skb, sk_buff__head);
	if (!head)
		return 0;
	path = state->tagged ? path_of(state, skb, head) : 0;
	if (path && path->ignored)
		goto end;
	if (!path && state->tagged && !(where.kind & KIND_BIRTH))
		former = former_head(skb);
	if (!path && !former && !entry)
		return 0;
	now = bpf_ktime_get_ns();
	if (sk_buff_read(&copy, skb))
		return 0;
	if (path && where.kind & KIND_RECEIVE && !(path->kind & KIND_DEVICE) &&
	    BITS(&copy, sk_buff__head_frag)) {
		path_remove(state, head);
		path = 0;
	}
	if (!path && former) {
		flow = flow_of(&copy, &header);
		path = carry_on(state, *former, skb, head, flow, where.kind, now);
	}
	/* Most packets are nobody's: the filter is asked before anything else is looked at. */
	asked = !path;
	if (asked &&
	    (!entry || packet_from_skb(&packet, &copy, tc) || (mark != MARK_TAKEN && !filter_match(&packet))))
		return 0;
	if (!header.addresses)
		flow = flow_of(&copy, &header);
	place_of(&place, &copy);
	if (asked) {
		path = enter(state, &copy, &place, now, mark == MARK_TAKEN);
		if (!path || path->ignored)
			return 0;
		path->flow = flow;
		path->skb = 0;
		path->link = packet.link;
		path->entered = entered_at(&where, &place);
		path->parent = parent_of(&copy, &header, flow, where.kind, path->entered, now);
		send_snapshot(state, &packet, path, now);
		flags |= EVENT_ENTRY;
	} else {
		translated = flow && path->flow && flow != path->flow;
		if (flow)
			path->flow = flow;
		/* Below the network layer a packet has a link header. One that had none yet when it got its
		 * number is worth a second snapshot. */
		if ((translated || (tc && path->link == PACKET_RAW)) &&
		    !packet_from_skb(&packet, &copy, tc) && (translated || packet.link != path->link)) {
			path->snapshot++;
			path->link = packet.link;
			send_snapshot(state, &packet, path, now);
		}
	}
	/* Through the task, since TC programs may not ask for the process before 6.10. Its name is that of
	 * its first thread; other threads call themselves what they like. */
	task = bpf_get_current_task();
	pid = read_u32(task, task_struct__tgid);
	if (pid != path->pid || flags) {
		path->pid = pid;
		send_process(state, read_pointer(task, task_struct__group_leader), pid, now);
	}
	/* TCP takes the device off; the sk_buff is where it was. Of another one nothing is known: what a sender
	 * keeps to send again did not move while its clone travelled. */
	if (!place.netns && path->skb == skb)
		place.netns = path->netns;
	path->seen = now;
	path->func = where.func;
	path->kind = where.kind;
	path->protocol = header.protocol;
	path->netns = place.netns;
	path->ifindex = place.ifindex;
	path->len = MEMBER(&copy, u32, sk_buff__len);
	path->mark = MEMBER(&copy, u32, sk_buff__mark);
#ifdef SOCKET_UNTOLD
	/* Between devices it is on its way to another socket, if to any. */
	if (where.socket || where.kind & KIND_DEVICE)
		path->socket = where.socket;
	else if (path->skb == skb)
		where.socket = path->socket;
#endif
	note_source(path, &copy, &header, where.kind, now);
	if (BITS(&copy, sk_buff__cloned))
		flags |= EVENT_CLONE;
	if (where.kind & KIND_END) {
		flags |= EVENT_END;
		if (is_last(&copy))
			flags |= EVENT_LAST;
		forget_head(skb);
	} else if (path->skb != skb) {
		path->skb = skb;
		remember_head(skb, head);
	}
	if (namespace_wanted(&place)) {
		send_event(state, path, now, skb, &where, flags);
		if (where.drop)
			send_drop(state, path, &copy, &where, now);
#ifdef HAVE_RETURNS
		if (where.call)
			opened = open_call(state, path, skb, &where);
#endif
	}
	if (where.kind & KIND_EXPAND && flags & EVENT_CLONE && !moved.update(&skb, path)) {
		COUNT(&state->moved);
		COUNT(&state->tagged);
	}
	if (flags & EVENT_LAST)
		path_remove(state, head);
	return opened;
end:
	if (where.kind & KIND_END && !sk_buff_read(&copy, skb) && is_last(&copy))
		path_remove(state, head);
	return 0;
}

/* The allocator frees something: perhaps the buffer of a packet that is followed, perhaps an sk_buff that had
 * lost its buffer before. Two sk_buffs that were allocated as a pair (fclone) are freed as one. */
static __always_inline int freed(void *ctx, u64 address, struct where where)
{
	u32 zero = 0;
	struct state *state = state_map.lookup(&zero);
	struct freer freer = {};
	struct place place = {};
	struct path *path;
	struct path copy;
	u64 skb = address;

	if (!state || !state->tagged || !address)
		return 0;
	freer.location = where.location;
	path = skb_map.lookup(&address);
	if (path) {
		copy = *path;
		if (skb_map.delete(&address))
			return 0; /* another CPU was faster */
		find_freer(ctx, &freer);
		skb = copy.skb;
		forget_head(skb);
		if (freer.expanding && !copy.ignored && !moved.update(&skb, &copy)) {
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
		copy = *path;
		if (moved.delete(&skb))
			return 0;
		__sync_fetch_and_add(&state->moved, -1);
	}
	__sync_fetch_and_add(&state->tagged, -1);
	if (copy.ignored)
		return 0;
	where.location = freer.location;
	place.netns = copy.netns;
	if (namespace_wanted(&place))
		send_event(state, &copy, bpf_ktime_get_ns(), skb, &where, EVENT_END | EVENT_LAST);
	return 0;
}

/* Whether a packet that was seen last on its way to a socket has left the socket's queue again: somebody read
 * it. Kernels since 5.18 may keep what was read for a while before they free it (skb_attempt_defer_free), and
 * say nothing of either. An sk_buff that's in no list points to no neighbour. Run by the tracer, for a buffer
 * it found in skb_map. */
static __always_inline int was_read(u64 head)
{
	u32 zero = 0;
	struct state *state = state_map.lookup(&zero);
	struct path *path = skb_map.lookup(&head);
	u8 head_frag = 0;
	u64 skb;

	if (!state || !path)
		return 0;
	skb = path->skb;
	if (read_pointer(skb, sk_buff__head) != head || read_pointer(skb, sk_buff__prev))
		return 0;
	bpf_probe_read_kernel(&head_frag, sizeof(head_frag), (void *)(skb + sk_buff__head_frag));
	if (!skb_map.lookup(&head))
		return 0;
	/* The allocator will tell of the end of its own buffers, and not of those from pages. */
	if (head_frag >> sk_buff__head_frag_SHIFT & 1)
		path_remove(state, head);
	return 1;
}
