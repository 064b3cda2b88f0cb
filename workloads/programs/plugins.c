// Loads argv[1], works in it, closes it, does the same with argv[2], and so on.
void use_plugin(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    if (!library) { fprintf(stderr, "%s\n", dlerror()); exit(1); }
    void (*work)(double) = dlsym(library, "plugin_entry");
    if (!work) { fprintf(stderr, "%s\n", dlerror()); exit(1); }
    work(1.0);
    dlclose(library);
}

int main(int argc, char **argv) {
    ready();
    for (;;)
        for (int i = 1; i < argc; i++) use_plugin(argv[i]);
}
