/*
 * kalam_core.h: what the files around the connection know of each other.
 *
 * kalam_options.c     settings and options
 * kalam_secret.c      where secrets may stand, and what logs may show
 * kalam_connection.c  the cache of connections, and how one is made
 * kalam_capability.c  what the server says it can do
 * kalam_request.c     one statement there and its answer back
 * kalam_cancel.c      the end of a statement nobody waits for any more
 * kalam_transaction.c what PostgreSQL's transactions mean over there
 */
#ifndef KALAM_CORE_H
#define KALAM_CORE_H

#include "kalam.h"

#define KALAM_DEFAULT_FETCH 10000
#define KALAM_DEFAULT_BATCH 10000

/* ---------- kalam_options.c ---------- */
extern int	kalam_node_id;		/* GUC kalam.node_id, -1: the server's */
extern bool kalam_option_is_secret(const char *name);
extern void kalam_check_option(Oid catalog, const char *name, const char *value);
extern void kalam_check_credentials(List *options);
extern void kalam_check_path(const char *name, const char *value);

/* ---------- kalam_secret.c ---------- */
extern bool kalam_secret_hook_active(void);	/* is the validator called below our utility hook? */

#endif							/* KALAM_CORE_H */
