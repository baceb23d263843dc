// A small request server, made to be traced and looked at.
//
// The main thread writes requests into a queue. Four workers take them out, and each request is parsed, its item looked
// up, and a page rendered. All requests cost about the same, but for one: request SLOW_REQUEST stores an item, the hash
// table is exactly full at that moment, and the worker that serves it has to rehash all items before it can go on.
// Readers never wait for that: the larger table is built aside and published with one store.
//
// What is printed depends on no schedule: the sum over the pages is the same in every run.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

enum {
    WORKERS = 4,
    REQUESTS = 400,
    SLOW_REQUEST = 257, // the only PUT; counted from 0
    STOCK = 3072,       // items at the start: 3/4 of the first table, its limit
    FIRST_TABLE = 4096,
    CANDIDATES = 6, // items considered as similar to one
    SIMILAR = 2,    // of them are shown
    QUEUE = 64,
    TEXT = 96,
    PAGE = 4096,
};

// ---- text ----------------------------------------------------------------------------------------------------------

struct page {
    size_t length;
    char text[PAGE];
};

static void append(struct page *page, char c)
{
    if (page->length < PAGE)
        page->text[page->length++] = c;
}

static void append_text(struct page *page, const char *text)
{
    while (*text)
        append(page, *text++);
}

static void append_number(struct page *page, unsigned number)
{
    if (number >= 10)
        append_number(page, number / 10);
    append(page, (char)('0' + number % 10));
}

static void append_escaped(struct page *page, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&': append_text(page, "&amp;"); break;
        case '<': append_text(page, "&lt;"); break;
        case '>': append_text(page, "&gt;"); break;
        case '"': append_text(page, "&quot;"); break;
        default: append(page, *text);
        }
    }
}

// ---- the stock: items in an open hash table ------------------------------------------------------------------------

struct item {
    char name[28];
    unsigned number, price;
};

struct table {
    size_t size, used; // size: a power of two
    _Atomic(struct item *) slot[];
};

static struct item stock[STOCK + 1];
static _Atomic(struct table *) items; // replaced as a whole, so that readers need no lock
static pthread_mutex_t storing = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint rehashes;

static unsigned hash_name(const char *name)
{
    unsigned hash = 2166136261u; // FNV-1a
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 16777619u;
    return hash;
}

static struct table *new_table(size_t size)
{
    struct table *table = calloc(1, sizeof *table + size * sizeof table->slot[0]);
    if (!table)
        abort();
    table->size = size;
    return table;
}

static void insert(struct table *table, struct item *item)
{
    size_t at = hash_name(item->name) & (table->size - 1);
    while (atomic_load_explicit(&table->slot[at], memory_order_relaxed))
        at = (at + 1) & (table->size - 1);
    atomic_store_explicit(&table->slot[at], item, memory_order_release);
    table->used++;
}

// The rare path. The old table is left to its last readers; there is only one in the life of this program.
static struct table *rehash(const struct table *old)
{
    struct table *wider = new_table(old->size * 2);
    for (size_t i = 0; i < old->size; i++) {
        struct item *item = atomic_load_explicit(&old->slot[i], memory_order_relaxed);
        if (item)
            insert(wider, item);
    }
    atomic_store_explicit(&items, wider, memory_order_release);
    atomic_fetch_add(&rehashes, 1);
    return wider;
}

static const struct item *lookup(const char *name)
{
    const struct table *table = atomic_load_explicit(&items, memory_order_acquire);
    for (size_t at = hash_name(name) & (table->size - 1);; at = (at + 1) & (table->size - 1)) {
        const struct item *item = atomic_load_explicit(&table->slot[at], memory_order_acquire);
        if (!item || strcmp(item->name, name) == 0)
            return item;
    }
}

static const struct item *store(const char *name)
{
    struct item *item = &stock[STOCK];
    pthread_mutex_lock(&storing);
    struct table *table = atomic_load_explicit(&items, memory_order_relaxed);
    if (table->used >= table->size / 4 * 3)
        table = rehash(table);
    strcpy(item->name, name);
    item->number = STOCK;
    insert(table, item);
    pthread_mutex_unlock(&storing);
    return item;
}

static void name_item(char *name, unsigned number)
{
    static const char *const colour[] = {"amber", "blue", "coral", "dark", "grey", "olive", "red", "white"};
    static const char *const thing[] = {"lamp", "chair", "\"Nest\" box", "desk & shelf"};
    struct page text;
    text.length = 0;
    append_text(&text, colour[number % 8]);
    append(&text, ' ');
    append_text(&text, thing[number / 8 % 4]);
    append(&text, ' ');
    append_number(&text, number);
    memcpy(name, text.text, text.length);
    name[text.length] = 0;
}

static void fill_stock(void)
{
    struct table *table = new_table(FIRST_TABLE);
    for (unsigned i = 0; i < STOCK; i++) {
        name_item(stock[i].name, i);
        stock[i].number = i;
        stock[i].price = 5 + i * 7919 % 997;
        insert(table, &stock[i]);
    }
    atomic_store(&items, table);
}

// ---- the page: a template with nested sections -----------------------------------------------------------------------

// `{field}` is replaced; the body of `{similar:…}` is repeated for each similar item, in whose terms it is rendered.
static const char *const FOUND = "<h1>{name}</h1><p>{price} coins</p>{similar:<h2>{name}</h2>{similar:<li>{name}: {price}</li>}}";
static const char *const NOT_FOUND = "<h1>not in stock</h1>";

static int by_price(const void *a, const void *b)
{
    const struct item *x = *(struct item *const *)a, *y = *(struct item *const *)b;
    if (x->price != y->price)
        return x->price < y->price ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

static void pick_similar(const struct item *item, const struct item **similar)
{
    for (unsigned i = 0; i < CANDIDATES; i++)
        similar[i] = &stock[(item->number + 32 * (i + 1)) % STOCK];
    qsort(similar, CANDIDATES, sizeof similar[0], by_price);
}

static const char *skip_field(const char *at)
{
    for (int depth = 1; *at; at++) {
        depth += (*at == '{') - (*at == '}');
        if (depth == 0)
            break;
    }
    return at;
}

static void render(struct page *page, const char *at, const struct item *item);

// `at` is behind the opening brace; returns what follows the closing one.
static const char *render_field(struct page *page, const char *at, const struct item *item)
{
    const char *end = skip_field(at);
    if (strncmp(at, "name", 4) == 0) {
        append_escaped(page, item->name);
    } else if (strncmp(at, "price", 5) == 0) {
        append_number(page, item->price);
    } else if (strncmp(at, "similar:", 8) == 0) {
        const struct item *similar[CANDIDATES];
        pick_similar(item, similar);
        for (int i = 0; i < SIMILAR; i++)
            render(page, at + 8, similar[i]);
    }
    return *end ? end + 1 : end;
}

static void render(struct page *page, const char *at, const struct item *item)
{
    while (*at && *at != '}') {
        if (*at == '{')
            at = render_field(page, at + 1, item);
        else
            append(page, *at++);
    }
}

// ---- a request -------------------------------------------------------------------------------------------------------

struct request {
    char method[8], name[sizeof stock[0].name];
};

static int hex_digit(char c)
{
    return c <= '9' ? c - '0' : (c | 32) - 'a' + 10;
}

// The next word, with %XX resolved; returns what follows the blank behind it.
static const char *parse_word(const char *at, char *word, size_t size)
{
    size_t length = 0;
    for (; *at && *at != ' '; at++) {
        char c = *at;
        if (c == '%' && at[1] && at[2]) {
            c = (char)(hex_digit(at[1]) << 4 | hex_digit(at[2]));
            at += 2;
        }
        if (length + 1 < size)
            word[length++] = c;
    }
    word[length] = 0;
    return *at ? at + 1 : at;
}

static void parse_request(const char *text, struct request *request)
{
    const char *at = parse_word(text, request->method, sizeof request->method);
    parse_word(at + strlen("/item/"), request->name, sizeof request->name);
}

static const struct {
    const char *method;
    const struct item *(*find)(const char *name);
} routes[] = {{"GET", lookup}, {"PUT", store}};

static const struct item *route(const struct request *request)
{
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++)
        if (strcmp(routes[i].method, request->method) == 0)
            return routes[i].find(request->name);
    return NULL;
}

static unsigned handle_request(const char *text)
{
    struct request request;
    struct page page;
    page.length = 0;
    parse_request(text, &request);
    const struct item *item = route(&request);
    render(&page, item ? FOUND : NOT_FOUND, item);
    append(&page, 0);
    return hash_name(page.text);
}

// ---- the queue, its writer and its readers -----------------------------------------------------------------------------

static struct {
    pthread_mutex_t lock;
    pthread_cond_t filled, drained;
    unsigned put, taken;
    char text[QUEUE][TEXT];
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER, .drained = PTHREAD_COND_INITIALIZER};

static void put_request(const char *text)
{
    pthread_mutex_lock(&queue.lock);
    while (queue.put - queue.taken == QUEUE)
        pthread_cond_wait(&queue.drained, &queue.lock);
    strcpy(queue.text[queue.put++ % QUEUE], text);
    pthread_cond_signal(&queue.filled);
    pthread_mutex_unlock(&queue.lock);
}

static void take_request(char *text)
{
    pthread_mutex_lock(&queue.lock);
    while (queue.put == queue.taken)
        pthread_cond_wait(&queue.filled, &queue.lock);
    strcpy(text, queue.text[queue.taken++ % QUEUE]);
    pthread_cond_signal(&queue.drained);
    pthread_mutex_unlock(&queue.lock);
}

static void *work(void *argument)
{
    char name[] = "worker 0", text[TEXT];
    unsigned *sum = argument;
    name[7] = (char)('1' + *sum);
    prctl(PR_SET_NAME, name);
    *sum = 0;
    for (take_request(text); *text; take_request(text))
        *sum += handle_request(text);
    return NULL;
}

static void write_request(struct page *text, unsigned number)
{
    char name[sizeof stock[0].name];
    text->length = 0;
    append_text(text, number == SLOW_REQUEST ? "PUT /item/" : "GET /item/");
    // Every 20th GET asks for what is not there.
    name_item(name, number == SLOW_REQUEST || number % 20 == 13 ? STOCK + number : number * 2654435761u % STOCK);
    for (const char *c = name; *c; c++) {
        if (*c == ' ' || *c == '%') {
            append(text, '%');
            append(text, "0123456789ABCDEF"[(unsigned char)*c >> 4]);
            append(text, "0123456789ABCDEF"[*c & 15]);
        } else {
            append(text, *c);
        }
    }
    append_text(text, " HTTP/1.1");
    append(text, 0);
}

int main(void)
{
    pthread_t thread[WORKERS];
    unsigned sum[WORKERS], total = 0;
    static struct page text;

    fill_stock();
    for (unsigned i = 0; i < WORKERS; i++) {
        sum[i] = i;
        if (pthread_create(&thread[i], NULL, work, &sum[i]) != 0)
            abort();
    }
    for (unsigned i = 0; i < REQUESTS; i++) {
        write_request(&text, i);
        put_request(text.text);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        put_request(""); // one worker goes home on each
    for (unsigned i = 0; i < WORKERS; i++) {
        pthread_join(thread[i], NULL);
        total += sum[i];
    }
    printf("%d requests, %u rehash, sum %08x\n", REQUESTS, atomic_load(&rehashes), total);
    return 0;
}
