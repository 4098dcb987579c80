/*
 * kalam_mapping.c: who may bind a role to a tenant, and set it free.
 *
 * PostgreSQL lets a role with USAGE on a server make, change and drop its own
 * user mapping.  Where the mapping's user_id says whose rows the role may see,
 * it would only have to alter it.  So user_id is for the server's owner, as
 * postgres_fdw's password_required is for superusers: what a role may do there
 * must not depend on what it says of itself.  Its own credentials a role may
 * give: with them it is what the server takes it for.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/syscache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

static bool
owns_server(Oid serverid)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(ForeignServerRelationId, serverid, GetUserId());
#else
	return pg_foreign_server_ownercheck(serverid, GetUserId());
#endif
}

static void
require_owner(const ForeignServer *server)
{
	if (owns_server(server->serverid))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("must be owner of foreign server %s to bind a role to a tenant, or to free it", server->servername),
			 errdetail("That is what option \"user_id\" of a user mapping does.")));
}

static bool
binds(const UserMapping *mapping)
{
	return mapping && kalam_find_option(mapping->options, "user_id");
}

static bool
names_user_id(List *options)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		if (strcmp(lfirst_node(DefElem, lc)->defname, "user_id") == 0)
			return true;
	}
	return false;
}

void
kalam_mapping_check(Node *stmt)
{
	bool		create = IsA(stmt, CreateUserMappingStmt);
	const char *name = create ? ((CreateUserMappingStmt *) stmt)->servername : ((AlterUserMappingStmt *) stmt)->servername;
	List	   *options = create ? ((CreateUserMappingStmt *) stmt)->options : ((AlterUserMappingStmt *) stmt)->options;
	ForeignServer *server = GetForeignServerByName(name, false);

	/* a mapping of its own takes the place of the one for everybody */
	if (names_user_id(options) || (create && binds(kalam_find_mapping(server->serverid, InvalidOid))))
		require_owner(server);
}

void
kalam_mapping_drop(Oid umid)
{
	HeapTuple	tuple = SearchSysCache1(USERMAPPINGOID, ObjectIdGetDatum(umid));
	Form_pg_user_mapping form;
	ForeignServer *server;

	if (!HeapTupleIsValid(tuple))
		return;
	form = (Form_pg_user_mapping) GETSTRUCT(tuple);
	server = GetForeignServerExtended(form->umserver, FSV_MISSING_OK);
	if (server && kalam_is_fdw(server->fdwid) && binds(kalam_find_mapping(form->umserver, form->umuser)))
		require_owner(server);
	ReleaseSysCache(tuple);
}
