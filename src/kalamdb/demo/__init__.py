"""A guided tour on real data: every answer of a KalamDB table is compared with a heap table's."""
