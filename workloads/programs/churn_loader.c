// Loads a library, works 100 ms in it, unloads it, and goes on with the next: argv[1] and so on, round and round. While it
// works in the library N the thread is called `churn-lib-N`, so that each sample says which one was loaded; not while it loads
// and unloads, which takes how long it takes on a machine.
#define APART __attribute__((noinline, noclone))

APART void use_library(unsigned long (*entry)(unsigned long)) {
    double end = seconds_on(CLOCK_THREAD_CPUTIME_ID) + 0.1;
    while (seconds_on(CLOCK_THREAD_CPUTIME_ID) < end) sink += entry(sink);
}

static void rename_to(const char *name) { call(SYS_prctl, PR_SET_NAME, (long)name, 0, 0); }

int main(int argc, char **argv) {
    void *before = NULL;
    unsigned long visits = 0, reused = 0;
    rename_to("churn-between");
    ready();
    for (;;) {
        for (int i = 1; i < argc; i++) {
            void *library = dlopen(argv[i], RTLD_NOW);
            if (!library) { fprintf(stderr, "%s\n", dlerror()); exit(1); }
            void *entry = dlsym(library, "library_entry");
            Dl_info info;
            if (!entry || !dladdr(entry, &info)) { fprintf(stderr, "%s\n", dlerror()); exit(1); }
            char name[16];
            snprintf(name, sizeof name, "churn-lib-%d", i);
            rename_to(name);
            use_library(entry);
            rename_to("churn-between");
            dlclose(library);
            visits++;
            reused += info.dli_fbase == before;
            before = info.dli_fbase;
        }
        printf("visits %lu, of which where another was just before %lu\n", visits, reused);
        fflush(stdout);
    }
}
