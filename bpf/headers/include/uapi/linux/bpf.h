/* bcc brings its own copy of bpf.h; see kconfig.h. */
