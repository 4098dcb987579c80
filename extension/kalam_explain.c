/*
 * kalam_explain.c: what EXPLAIN (ANALYZE) tells of a scan.
 *
 * The requests of an instrumented scan name a report, to which the server adds
 * what it does for them; EXPLAIN asks for it in the end.  Scans that nobody
 * instruments carry none of this.
 */
#include "postgres.h"

#include "commands/explain.h"
#include "executor/instrument.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif

#include "kalam_core.h"
#include "kalam_read.h"

void
kalam_measure_begin(KalamMeasure *measure, EState *estate)
{
	static int	last = 0;

	if (estate->es_instrument == 0)
		return;
	last = last == PG_INT32_MAX ? 1 : last + 1;
	measure->report = last;
}

/* "SELECT 256 scan_7" */
static int64
tag_rows(PGresult *res)
{
	const char *number = strchr(PQcmdStatus(res), ' ');

	return number ? strtoll(number, NULL, 10) : 0;
}

void
kalam_measure_chunk(KalamMeasure *measure, KalamConn *conn, PGresult *res)
{
	if (measure->report == 0)
		return;
	measure->made = conn->made;
	measure->chunks++;
	measure->rows += tag_rows(res);
	for (int row = 0; row < PQntuples(res); row++)
	{
		for (int col = 0; col < PQnfields(res); col++)
			measure->bytes += PQgetlength(res, row, col);
	}
}

/* ---------- the server's report ---------- */

static char *
fact(PGresult *report, const char *name)
{
	for (int row = 0; row < PQntuples(report); row++)
	{
		if (strcmp(PQgetvalue(report, row, 0), name) == 0)
			return PQgetvalue(report, row, 1);
	}
	return "";
}

static int64
count(PGresult *report, const char *name)
{
	return strtoll(fact(report, name), NULL, 10);
}

static PGresult *
ask_report(KalamMeasure *measure, KalamConn *conn)
{
	KalamRequest req = {0};

	req.sql = psprintf("SHOW SCAN STATS %d", measure->report);
	return kalam_request(conn, &req);
}

/* ---------- printing ---------- */

static void
explain_text(KalamMeasure *measure, PGresult *report, ExplainState *es)
{
	StringInfoData line;

	ExplainPropertyText("Received", psprintf("rows=" INT64_FORMAT " chunks=" INT64_FORMAT " bytes=" INT64_FORMAT,
											 measure->rows, measure->chunks, measure->bytes), es);
	if (PQntuples(report) == 0)
		return;
	initStringInfo(&line);
	appendStringInfo(&line, "path=%s", fact(report, "path"));
	if (es->timing)
		appendStringInfo(&line, " time=%.3f ms", count(report, "time_us") / 1000.0);
	appendStringInfo(&line, " hot rows=" INT64_FORMAT " cold rows=" INT64_FORMAT,
					 count(report, "hot_rows"), count(report, "cold_rows"));
	ExplainPropertyText("Server", line.data, es);
	if (count(report, "segments") + count(report, "segments_pruned") > 0)
		ExplainPropertyText("Segments", psprintf("read=" INT64_FORMAT " pruned=" INT64_FORMAT " groups read="
												 INT64_FORMAT " groups pruned=" INT64_FORMAT,
												 count(report, "segments"), count(report, "segments_pruned"),
												 count(report, "groups"), count(report, "groups_pruned")), es);
}

static void
explain_properties(KalamMeasure *measure, PGresult *report, ExplainState *es)
{
	ExplainPropertyInteger("Rows Received", NULL, measure->rows, es);
	ExplainPropertyInteger("Chunks", NULL, measure->chunks, es);
	ExplainPropertyInteger("Bytes Received", NULL, measure->bytes, es);
	if (PQntuples(report) == 0)
		return;
	ExplainPropertyText("Server Path", fact(report, "path"), es);
	if (es->timing)
		ExplainPropertyFloat("Server Time", "ms", count(report, "time_us") / 1000.0, 3, es);
	ExplainPropertyInteger("Hot Rows", NULL, count(report, "hot_rows"), es);
	ExplainPropertyInteger("Cold Rows", NULL, count(report, "cold_rows"), es);
	ExplainPropertyInteger("Segments Read", NULL, count(report, "segments"), es);
	ExplainPropertyInteger("Segments Pruned", NULL, count(report, "segments_pruned"), es);
	ExplainPropertyInteger("Row Groups Read", NULL, count(report, "groups"), es);
	ExplainPropertyInteger("Row Groups Pruned", NULL, count(report, "groups_pruned"), es);
}

/* A scan that never ran has nothing to tell; and a report is gone with its connection. */
void
kalam_measure_explain(KalamMeasure *measure, KalamConn *conn, ExplainState *es)
{
	PGresult   *report;

	if (!es->analyze || measure->report == 0 || measure->chunks == 0 || conn->pg == NULL || measure->made != conn->made)
		return;
	report = ask_report(measure, conn);
	if (es->format == EXPLAIN_FORMAT_TEXT)
		explain_text(measure, report, es);
	else
		explain_properties(measure, report, es);
	kalam_result_free(report);
}
