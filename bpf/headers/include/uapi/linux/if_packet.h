/* Nothing of it is used; see kconfig.h. */
