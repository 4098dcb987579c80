/*
 * kalam_pattern.c: regular expressions that the server understands alike.
 *
 * The grammar is that of kalamdb.sql.patterns, where it is explained; what this
 * lets through, that translates.
 */
#include "postgres.h"

#include <ctype.h>

#include "mb/pg_wchar.h"

#include "kalam_read.h"

#define MAX_LENGTH 1000
#define MAX_REPEATED 255
#define MAX_GROUPS 20

typedef struct Pattern
{
	const unsigned char *at;
	bool		single;			/* at most one part may have several lengths */
	bool		classes;		/* has \d, \w or \s, which depend on the locale */
	int			repeated;		/* how often, in all */
	int			quantities;
	int			least;			/* characters that a match has */
} Pattern;

/* \ and a sign, or a letter that stands for characters */
static bool
scan_escape(Pattern *p, const char *letters)
{
	if (p->at[1] >= 128 || p->at[1] == '\0' || (!ispunct(p->at[1]) && strchr(letters, p->at[1]) == NULL))
		return false;
	if (strchr("dwsDWS", p->at[1]))
		p->classes = true;
	p->at += 2;
	return true;
}

static bool
is_range(const unsigned char *at)
{
	if (at[0] == '\0' || at[1] != '-' || at[2] == ']')
		return false;
	return (isdigit(at[0]) && isdigit(at[2])) || (at[0] < 128 && at[2] < 128 &&
												  ((islower(at[0]) && islower(at[2])) || (isupper(at[0]) && isupper(at[2]))));
}

/* [...] */
static bool
scan_list(Pattern *p)
{
	bool		empty = true;

	p->at++;
	if (*p->at == '^')
		p->at++;
	if (*p->at == '-' && p->at[1] != ']')
		p->at++;
	for (; *p->at != ']' || empty; empty = false)
	{
		if (is_range(p->at))
		{
			if (p->at[0] > p->at[2])
				return false;
			p->at += 3;
		}
		else if (*p->at == '-' && p->at[1] == ']' && !empty)
			p->at++;
		else if (*p->at == '\\')
		{
			if (!scan_escape(p, "dwsntrfv"))
				return false;
		}
		else if (strchr("[]^-", *p->at))	/* and the end */
			return false;
		else
			p->at++;
	}
	p->at++;
	return true;
}

static bool
scan_number(Pattern *p, int *number)
{
	int			digits = 0;

	for (*number = 0; digits < 3 && isdigit(*p->at); digits++)
		*number = *number * 10 + *p->at++ - '0';
	return digits > 0;
}

/* *, +, ?, {m}, {m,} or {m,n}, and perhaps ? */
static bool
scan_quantity(Pattern *p)
{
	int			low = *p->at == '+';
	int			high = 1;

	if (*p->at++ == '{')
	{
		if (!scan_number(p, &low))
			return false;
		high = low;
		if (*p->at == ',')
		{
			p->at++;
			if (!scan_number(p, &high))
				high = low + 1;
		}
		if (*p->at++ != '}' || low > high || high > MAX_REPEATED)
			return false;
	}
	if (*p->at == '?')
	{
		p->at++;
		if (p->single)
			return false;
	}
	p->repeated *= Max(high, 1);
	p->least += low - 1;
	return p->repeated <= MAX_REPEATED && !(p->single && ++p->quantities > 1);
}

static bool
scan_pattern(Pattern *p)
{
	int			depth = 0;
	bool		empty = true;	/* is the branch, so far? */
	bool		atom = false;	/* may a quantifier follow? */

	while (*p->at)
	{
		switch (*p->at)
		{
			case '(':
				p->at++;
				if (*p->at == '?' && *++p->at != ':')
					return false;
				if (*p->at == ':' && p->at[-1] == '?')
					p->at++;
				if (++depth > MAX_GROUPS)
					return false;
				empty = true;
				atom = false;
				continue;
			case ')':
				if (depth-- == 0 || empty)
					return false;
				p->at++;
				atom = !p->single;
				continue;
			case '|':
				if (empty || p->single)
					return false;
				p->at++;
				empty = true;
				atom = false;
				continue;
			case '^':
				if (!empty || strchr("*+?{", p->at[1] ? p->at[1] : ' '))
					return false;
				p->at++;
				empty = false;
				continue;
			case '$':
				if (p->at[1] != '\0' && p->at[1] != '|' && p->at[1] != ')')
					return false;
				p->at++;
				empty = false;
				atom = false;
				continue;
			case '*':
			case '+':
			case '?':
			case '{':
				if (!atom || !scan_quantity(p))
					return false;
				atom = false;
				continue;
			case '[':
				if (!scan_list(p))
					return false;
				break;
			case '\\':
				if (!scan_escape(p, "dwsDWSntrfv"))
					return false;
				break;
			case ']':
			case '}':
				return false;
			default:
				p->at += pg_utf_mblen(p->at);
		}
		p->least++;
		empty = false;
		atom = true;
	}
	return depth == 0 && !empty && !(p->single && p->least < 1);
}

/*
 * Does it mean the same to the server, in a database in UTF8?  single: also
 * where it matches; classes: only if digits, spaces and letters are ASCII's.
 */
bool
kalam_is_common_pattern(const char *pattern, bool single, bool *classes)
{
	Pattern		scanned = {.at = (const unsigned char *) pattern, .single = single, .repeated = 1};
	bool		result = strlen(pattern) <= MAX_LENGTH && scan_pattern(&scanned);

	*classes = scanned.classes;
	return result;
}
