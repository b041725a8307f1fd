/* SPDX-License-Identifier: Apache-2.0
 *
 * A hop: one packet seen in one function.
 *
 * Every probe ends here. The sk_buff is read once, as a whole, into the stack: its members' offsets come from
 * the running kernel's BTF as macros named <struct>__<member>. Nothing is read through the pointer of a
 * packet that is not followed, but its `head`.
 */

/* Buffers of packets that found skb_map full, and when: a packet is counted once, and not taken up in the middle of
 * its way. */
BPF_TABLE("lru_hash", u64, u64, refused, 4096);

/* Of each SAMPLE packets one, at random: queries and their replies, or whatever else comes by turns, would otherwise be
 * told from each other by the count. */
static __always_inline int is_chosen(u64 number)
{
	u64 lot = (number / SAMPLE + 1) * 0x9E3779B97F4A7C15ull;

	return number % SAMPLE == ((lot ^ lot >> 29) * 0xBF58476D1CE4E5B9ull >> 32) % SAMPLE;
}

/* A packet that the filter takes gets its number. */
static __always_inline struct path *enter(struct state *state, const struct sk_buff_view *view,
					  struct place *place, u64 now, int taken)
{
	struct path path = {};
	u64 head = view->head;
	int error;

	if (!taken && (!namespace_wanted(place) || !interface_wanted(place)))
		return 0;
	if (state->untracked) {
		u64 *when = refused.lookup(&head);

		if (when && now - *when < FRESH)
			return 0;
	}
#if SAMPLE > 1
	if (taken || is_chosen(NEXT(&state->matched))) {
#else
	{
#endif
#ifdef PACKETS_LIMIT
		if (state->packets >= PACKETS_LIMIT)
			return 0;
#endif
		path.packet = next_number(state);
	}
	/* A clone on another CPU may have been faster; then the packet has its number. */
	error = state->tagged >= SKB_MAP_ENTRIES ? -ENOENT : path_put(state, head, &path);
	if (!error) {
		COUNT(&state->tagged);
		if (is_ignored(&path))
			COUNT(&state->sampled_out);
	} else if (error != -EEXIST) {
		COUNT(&state->untracked);
		refused.update(&head, &now);
	}
	return path_at(state, head);
}

/* Whether the buffer goes with this sk_buff: nobody else refers to it. As skb_release_data() reckons: the
 * header of a packet whose payload is shared (`nohdr`) holds a reference of its own in the upper half. */
static __always_inline int is_last(const struct sk_buff_view *view)
{
	u32 end, bias;

	if (!BITS(view, sk_buff__cloned))
		return 1;
	end = MEMBER(view, u32, sk_buff__end);
	bias = BITS(view, sk_buff__nohdr) ? (1 << 16) + 1 : 1;
	return read_u32(view->head, end + skb_shared_info__dataref) == bias;
}

/* TCP of kernels without reasons frees what it drops without a word, as it frees what it has used. It counts it before,
 * at the socket. */
#ifdef FUNC_tcp_drop
static __always_inline void note_tcp_drop(const struct path *path, struct where *where)
{
	if (path->protocol == 6 && where->socket && read_u32(where->socket, sock__sk_drops) != path->drops)
		where->func = FUNC_tcp_drop;
	else
		where->drop = 0;
}
#endif

/* Programs of TC and netfilter may not ask for the process before 6.10; it is found through the task. */
static __always_inline u32 process_of(const struct where *where)
{
	return where->untold ? read_u32(bpf_get_current_task(), task_struct__tgid)
			     : bpf_get_current_pid_tgid() >> 32;
}

/* What changes from hop to hop. */
static __always_inline void note_hop(struct path *path, const struct sk_buff_view *view,
				     const struct where *where)
{
	path->func = where->func;
	path->len = MEMBER(view, u32, sk_buff__len);
	path->mark = MEMBER(view, u32, sk_buff__mark);
}

/* Most hops are plain: the same sk_buff is where it was, in the same process, with the addresses that it had, and the
 * function does nothing to it that is of interest beyond the hop. What hop() does of all it has to ask comes down to this
 * then, in half the time. 1 where it was so. */
#ifdef PLAIN_HOPS
#define UNPLAIN (KIND_END | KIND_EXPAND | KIND_COPY | KIND_RELEASE)

static __always_inline int plain_hop(struct state *state, struct path *path, const struct sk_buff_view *view,
				     void *tc, const struct where *where, u64 now)
{
	struct place place = {.netns = path->netns, .ifindex = path->ifindex};
	u16 flags = BITS(view, sk_buff__cloned) ? EVENT_CLONE : 0;

	if (where->kind & UNPLAIN || where->call || path->skb != view->skb || is_ignored(path))
		return 0;
	if (!path->netns || path->dev != sk_buff_device(view) || path->pid != process_of(where))
		return 0;
	if ((tc && path->link == PACKET_RAW) || may_be_source(view, where->kind) || !is_same_flow(path, view))
		return 0;
	note_hop(path, view, where);
	path->seen = now;
	path->kind = where->kind;
	if (!namespace_wanted(&place))
		return 1;
	if (where->beside && functions_are_skipped())
		flags |= EVENT_SKIPPED;
	send_event(state, path, now, view->skb, where, flags);
	note_time(state, now);
	return 1;
}
#else
static __always_inline int plain_hop(struct state *state, struct path *path, const struct sk_buff_view *view,
				     void *tc, const struct where *where, u64 now)
{
	return 0;
}
#endif

/* 1 where a call was opened: the function's return is of interest. */
static __always_inline int hop(struct state *state, void *tc, u64 skb, struct where where)
{
	u64 armed = state->armed;
	struct sk_buff_view view;
	struct packet packet = {}; /* or clang moves about what was never written, which verifiers refuse */
	struct place place;
	struct path *path;
	u64 now = 0, head, dev, flow = 0;
	u64 *former = 0;
	u32 pid, translated, entry, asked, former_netns, last = 0, mark = 0;
	u16 flags = 0;
	struct header header = {};
	struct freer freer = {};
	int opened = 0, told = 0;

	if (armed == DISARMED || !skb)
		return 0;
	if (armed == CALIBRATING) {
		mark = tc ? ((struct __sk_buff *)tc)->mark : 0;
		if (mark != MARK_REFUSED && mark != MARK_TAKEN)
			return 0;
	}
	entry = where.kind & KIND_ENTRY && armed != CLOSING;
	if (!entry && !state->tagged)
		return 0;
	head = sk_buff_open(&view, skb);
	if (!head)
		return 0;
	path = state->tagged ? path_of(state, skb, head) : 0;
	if (!path && state->tagged)
		former = former_head(skb);
	if (!path && !former &&
	    (!entry || (where.kind & KIND_AGAIN && state->tagged && was_refused(head, where.rank))))
		return 0;
	if (path || former)
		now = bpf_ktime_get_ns();
	if (sk_buff_read(&view))
		return 0;
	if (path && (is_handed_up_anew(path, &view, where.kind) || is_reused(path, &view, where.rank, now))) {
		if (!is_ignored(path))
			send_unseen(state, path, now);
		path_remove(state, head);
		path = 0;
	}
	if (path && plain_hop(state, path, &view, tc, &where, now))
		return 0;
	if (path && where.kind & KIND_RELEASE && !is_last(&view))
		return 0;
	if (!path && former) {
		flow = flow_of(&view, &header);
		path = carry_on(state, *former, skb, head, flow, where.kind, now);
	}
	/* Most packets are nobody's: the filter is asked before anything else is looked at. */
	asked = !path;
	if (asked) {
		if (!entry)
			return 0;
		if (packet_from_skb(&packet, &view, tc) || (mark != MARK_TAKEN && !filter_match(&packet))) {
			note_refusal(head, where.rank, where.kind);
			return 0;
		}
		if (!now)
			now = bpf_ktime_get_ns();
	}
	if (where.kind & KIND_END)
		last = is_last(&view);
	if (path && is_ignored(path))
		goto pass;
	if (!header.addresses)
		flow = flow_of(&view, &header);
	dev = sk_buff_device(&view);
	if (path && path->dev && path->dev == dev) {
		place.netns = path->netns;
		place.ifindex = path->ifindex;
	} else {
		dev = place_of(&place, &view, dev);
	}
	if (asked) {
		path = enter(state, &view, &place, now, mark == MARK_TAKEN);
		if (!path)
			return 0;
		path->flow = flow;
		path->skb = 0;
		if (is_ignored(path))
			goto pass;
		path->link = packet.link;
		path->entered = entered_at(&where, &place);
		path->parent = parent_of(&view, &header, flow, where.kind, path->entered, now);
		send_snapshot(state, &packet, path, now);
		flags |= EVENT_ENTRY;
	} else {
		translated = flow && path->flow && flow != path->flow;
		/* Below the network layer a packet has a link header. One that had none yet when it got its
		 * number is worth a second snapshot. */
		if ((translated || (tc && path->link == PACKET_RAW)) &&
		    !packet_from_skb(&packet, &view, tc) && (translated || packet.link != path->link)) {
			path->snapshot++;
			path->link = packet.link;
			send_snapshot(state, &packet, path, now);
		}
	}
	pid = process_of(&where);
	if (pid != path->pid || flags) {
		path->pid = pid;
		send_process(state, pid, now);
	}
	/* TCP takes the device off; the sk_buff is where it was. Of another one nothing is known: what a sender
	 * keeps to send again did not move while its clone travelled. */
	if (!place.netns && path->skb == skb)
		place.netns = path->netns;
	note_hop(path, &view, &where);
	path->dev = dev;
	if (flow) {
		path->flow = flow;
		path->protocol = header.protocol;
		remember_header(path, &view);
	}
	former_netns = path->netns;
	path->netns = place.netns;
	path->ifindex = place.ifindex;
#ifdef FUNC_tcp_drop
	if (where.socket)
		path->drops = read_u32(where.socket, sock__sk_drops);
#endif
#ifdef SOCKET_UNTOLD
	/* Between devices it is on its way to another socket, if to any. */
	if (where.socket || where.kind & KIND_DEVICE)
		path->socket = where.socket;
	else if (path->skb == skb)
		where.socket = path->socket;
#endif
#ifdef FUNC_tcp_drop
	if (where.kind & KIND_RELEASE)
		note_tcp_drop(path, &where);
#endif
	if (where.freed) {
		u64 frames[NEAR_FRAMES] = {};

		find_freer(where.ctx, frames, NEAR_FRAMES, &freer);
		where.location = freer.location;
	}
	note_source(path, &view, &header, where.kind, now);
	if (BITS(&view, sk_buff__cloned))
		flags |= EVENT_CLONE;
	if (where.kind & KIND_END) {
		flags |= EVENT_END;
		if (last && !path->parted)
			flags |= EVENT_LAST;
		/* The last end, of which no place is known, is wanted where the packet was. */
		if (last && !place.netns)
			place.netns = former_netns;
	}
	if (namespace_wanted(&place)) {
		if (where.beside && functions_are_skipped())
			flags |= EVENT_SKIPPED;
		send_event(state, path, now, skb, &where, flags);
		if (where.drop)
			send_drop(state, path, &view, &where, now);
#ifdef HAVE_RETURNS
		if (where.call)
			opened = open_call(state, path, skb, &where);
#endif
		told = 1;
	}
pass: /* What was sampled out is followed all the same, or else it would be asked about again. */
	path->seen = now;
	path->kind = where.kind;
	if (where.kind & KIND_END) {
		forget_head(skb);
	} else if (path->skb != skb) {
		path->skb = skb;
		remember_head(skb, head);
	}
	if (where.kind & KIND_EXPAND) {
		/* Nobody else holds the first buffer, so that it is freed there, without a word. */
		last = is_last(&view);
		path->parted |= !last;
		if (!moved.update(&skb, path)) {
			COUNT(&state->moved);
			COUNT(&state->tagged);
		} else {
			last = 0;
		}
	}
	if (where.kind & KIND_END)
		forget_moved(state, skb);
	if (last)
		path_remove(state, head);
	if (told)
		note_time(state, now);
	return opened;
}
