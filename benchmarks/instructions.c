/* A plugin of qemu's translator: counts the instructions that a process executes, and says how many at each mark.
 *
 * A mark is the system call prctl with a first argument that no kernel knows, and a number of the process' own. Each
 * line of the file named by "out=" is such a number and the count so far. The prototypes are those of the public plugin
 * interface, version 1 (include/qemu/qemu-plugin.h), which Debian does not ship. One thread is counted right. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MARK 0x45454D42

enum { AARCH64_PRCTL = 167, ARM_PRCTL = 172, INLINE_ADD = 0 };

typedef uint64_t plugin;
struct block;

size_t qemu_plugin_tb_n_insns(const struct block *block);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin id, void (*translated)(plugin, struct block *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *block, int operation, void *number, uint64_t added);
void qemu_plugin_register_vcpu_syscall_cb(plugin id, void (*called)(plugin, unsigned, int64_t, uint64_t, uint64_t,
                                                                    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                                    uint64_t));

EXPORT int qemu_plugin_version = 1;

static uint64_t executed;
static FILE *out;

static void translated(plugin id, struct block *block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD, &executed, qemu_plugin_tb_n_insns(block));
}

static void called(plugin id, unsigned cpu, int64_t number, uint64_t first, uint64_t second, uint64_t third,
                   uint64_t fourth, uint64_t fifth, uint64_t sixth, uint64_t seventh, uint64_t eighth) {
    (void)id, (void)cpu, (void)third, (void)fourth, (void)fifth, (void)sixth, (void)seventh, (void)eighth;
    if ((number == AARCH64_PRCTL || number == ARM_PRCTL) && first == MARK) {
        fprintf(out, "%" PRIu64 " %" PRIu64 "\n", second, executed);
        fflush(out);
    }
}

EXPORT int qemu_plugin_install(plugin id, const void *target, int count, char **arguments) {
    (void)target;
    if (count != 1 || strncmp(arguments[0], "out=", 4) || !(out = fopen(arguments[0] + 4, "w")))
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
