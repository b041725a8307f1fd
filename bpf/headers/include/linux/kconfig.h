/* SPDX-License-Identifier: Apache-2.0
 *
 * bcc compiles inside a tree of kernel headers and forces this file in. Ours is that tree: the few names that
 * bcc's own headers need, and nothing that depends on the running kernel. So no headers package has to be
 * installed.
 */
#ifndef BPFPATH_KCONFIG_H
#define BPFPATH_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1
#define PAGE_SIZE	   4096

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;

#endif
