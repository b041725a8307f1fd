/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a packet is: namespace and interface, and whether those are wanted.
 */

/* Inode numbers of namespaces come from the upper end (PROC_DYNAMIC_FIRST and the fixed ones just below it).
 * Where `skb->dev` shares its place with something else (udp's dev_scratch, TCP's rbnode) what is read
 * through it is not a namespace. */
#define NETNS_LOWEST 0xEFFF0000u

struct place {
	u32 netns;
	u32 ifindex;
};

/* Where the sk_buff with this device is. The device that it was read from, else 0. */
static __always_inline u64 place_of(struct place *place, const struct sk_buff_view *view, u64 dev)
{
	u64 net = read_pointer(dev, net_device__nd_net);
	u32 netns = read_u32(net, net__ns_inum);

	place->netns = 0;
	place->ifindex = 0;
	if (netns >= NETNS_LOWEST) {
		place->netns = netns;
		place->ifindex = read_u32(dev, net_device__ifindex);
		return dev;
	}
	net = read_pointer(read_pointer(view->skb, sk_buff__sk), sock__skc_net);
	netns = read_u32(net, net__ns_inum);
	if (netns >= NETNS_LOWEST)
		place->netns = netns;
	return 0;
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
