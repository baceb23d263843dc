/* A deterministic workload for SQLite, in memory: inserts, an index, joins, text and updates. */
#include "sqlite3.h"
#include <stdio.h>
#include <stdlib.h>

static void run(sqlite3 *db, const char *sql) {
    char *error = 0;
    if (sqlite3_exec(db, sql, 0, 0, &error) != SQLITE_OK) {
        fprintf(stderr, "%s: %s\n", sql, error);
        exit(1);
    }
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    sqlite3 *db;
    sqlite3_stmt *insert, *find;
    long long sum = 0;
    if (sqlite3_open(":memory:", &db) != SQLITE_OK) return 1;
    for (int round = 0; round < rounds; round++) {
        run(db, "DROP TABLE IF EXISTS item; DROP TABLE IF EXISTS owner;"
                "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, owner INT, price REAL);"
                "CREATE TABLE owner(id INTEGER PRIMARY KEY, name TEXT);"
                "CREATE INDEX by_name ON item(name);");
        run(db, "BEGIN");
        sqlite3_prepare_v2(db, "INSERT INTO item VALUES(?, ?, ?, ?)", -1, &insert, 0);
        for (int i = 0; i < 2000; i++) {
            char name[32];
            unsigned mixed = (unsigned)i * 2654435761u;
            snprintf(name, sizeof name, "item %u", mixed >> 12);
            sqlite3_bind_int(insert, 1, i);
            sqlite3_bind_text(insert, 2, name, -1, SQLITE_TRANSIENT);
            sqlite3_bind_int(insert, 3, (int)(mixed % 50));
            sqlite3_bind_double(insert, 4, (mixed >> 8) / 100.0);
            sqlite3_step(insert);
            sqlite3_reset(insert);
        }
        sqlite3_finalize(insert);
        run(db, "INSERT INTO owner SELECT DISTINCT owner, 'owner ' || owner FROM item; COMMIT");
        run(db, "UPDATE item SET price = price * 1.1 WHERE owner % 3 = 0");
        run(db, "DELETE FROM item WHERE name LIKE '%77%'");
        sqlite3_prepare_v2(db,
            "SELECT owner.name, count(*), sum(price), max(item.name) FROM item JOIN owner ON owner.id = item.owner "
            "WHERE item.name > ? GROUP BY owner.name ORDER BY 3 DESC", -1, &find, 0);
        for (int i = 0; i < 5; i++) {
            char from[16];
            snprintf(from, sizeof from, "item %d", i);
            sqlite3_bind_text(find, 1, from, -1, SQLITE_TRANSIENT);
            while (sqlite3_step(find) == SQLITE_ROW) sum += sqlite3_column_int64(find, 1) + sqlite3_column_bytes(find, 3);
            sqlite3_reset(find);
        }
        sqlite3_finalize(find);
    }
    sqlite3_close(db);
    printf("%lld\n", sum);
    return 0;
}
