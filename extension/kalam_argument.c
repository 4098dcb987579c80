/*
 * kalam_argument.c: what the capability table asks of a call's arguments.
 *
 * Some functions have PostgreSQL's result on the server only for some values of
 * an argument.  That is known where it is a constant.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "kalam_read.h"

/* The text of a constant; NULL if it is none, or NULL. */
static char *
constant_text(Node *arg)
{
	Const	   *value = (Const *) arg;

	if (arg == NULL || !IsA(arg, Const) || value->constisnull || value->consttype != TEXTOID)
		return NULL;
	return TextDatumGetCString(value->constvalue);
}

/* Is it one of "a|b", in letters of either case? */
static bool
is_listed(const char *text, const char *listed)
{
	size_t		len = strlen(text);

	for (const char *word = listed; word; word = strchr(word, '|'))
	{
		if (*word == '|')
			word++;
		if (strcspn(word, "| ") == len && pg_strncasecmp(word, text, len) == 0)
			return true;
	}
	return false;
}

/* An array that cannot have more than one dimension, or none at all. */
static bool
is_flat(Node *arg)
{
	Const	   *array = (Const *) arg;

	if (!OidIsValid(get_element_type(exprType(arg))))
		return true;
	if (IsA(arg, ArrayExpr))
		return !((ArrayExpr *) arg)->multidims;
	return IsA(arg, Const) && (array->constisnull || ARR_NDIM(DatumGetArrayTypeP(array->constvalue)) <= 1);
}

/* The pattern is understood alike; what is put in its place is no more than characters, and the only option is "g". */
static bool
pattern_allowed(const KalamCap *cap, List *args, Oid collation)
{
	char	   *pattern = constant_text(lsecond(args));
	char	   *with = list_length(args) > 2 ? constant_text(lthird(args)) : "";
	char	   *options = list_length(args) > 3 ? constant_text(lfourth(args)) : "g";
	bool		classes;

	if (pattern == NULL || with == NULL || options == NULL || !kalam_is_common_pattern(pattern, cap->pattern == '1', &classes))
		return false;
	return (!classes || kalam_has_ascii_letters(collation)) && strchr(with, '\\') == NULL &&
		strcmp(options, "g") == 0;
}

static bool
shifts_are_masked(void)
{
#if defined(__x86_64__) || defined(__aarch64__)
	return true;
#else
	return false;
#endif
}

static bool
is_libm_of(KalamConn *conn)
{
	const char *theirs = kalam_server_fact(conn, "libm");

	return theirs != NULL && strcmp(theirs, kalam_libm()) == 0;
}

bool
kalam_arguments_allowed(KalamConn *conn, const KalamCap *cap, List *args, Oid collation)
{
	ListCell   *lc;

	if (cap->constants)
	{
		char	   *text = args == NIL ? NULL : constant_text(linitial(args));

		if (text == NULL || !is_listed(text, cap->constants))
			return false;
	}
	if (cap->pattern && (list_length(args) < 2 || !pattern_allowed(cap, args, collation)))
		return false;
	if ((cap->needs_masked_shift && !shifts_are_masked()) || (cap->needs_libm && !is_libm_of(conn)))
		return false;
	foreach(lc, args)
	{
		if (cap->needs_flat && !is_flat(lfirst(lc)))
			return false;
	}
	return true;
}
