// A library; -DVERSION names its function, so that two versions can be told apart.
#define JOIN(a, b) a##b
#define NAME(version) JOIN(plugin_work_, version)
SPENDER(NAME(VERSION))
void plugin_entry(double seconds) { NAME(VERSION)(seconds); sink++; }
