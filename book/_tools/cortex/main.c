/* Starts a network on a Cortex-M without an operating system, and prints by semihosting how many
   ticks of the system clock a sample takes and what the network returns, in hexadecimal. */
#include <stdint.h>

extern uint32_t data_load, data_start, data_end, bss_start, bss_end;

static int call(int operation, void *argument)
{
    register int r0 __asm__("r0") = operation;
    register void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void print(uint32_t number)
{
    static char text[10];
    for (int i = 0; i < 8; i++) {
        uint32_t digit = number >> (28 - 4 * i) & 15;
        text[i] = (char)(digit < 10 ? '0' + digit : 'a' + digit - 10);
    }
    text[8] = '\n';
    call(4, text);
}

void *memcpy(void *to, const void *from, unsigned size)
{
    char *target = to;
    const char *source = from;
    while (size--)
        *target++ = *source++;
    return to;
}

void *memset(void *to, int value, unsigned size)
{
    char *target = to;
    while (size--)
        *target++ = (char)value;
    return to;
}

void start(void);
void start(void)
{
    uint32_t *from = &data_load;
    for (uint32_t *to = &data_start; to < &data_end;)
        *to++ = *from++;
    for (uint32_t *to = &bss_start; to < &bss_end;)
        *to++ = 0;
    *(volatile uint32_t *)0xE000ED88 |= 0xF << 20; /* the floating point unit */
    __asm__ volatile("dsb; isb");
    static float y[network_OUTPUTS];
    volatile uint32_t *clock = (volatile uint32_t *)0xE000E010;
    clock[1] = 0xffffff;
    clock[2] = 0;
    clock[0] = 5;
    uint32_t before = clock[2];
    network(sample, y);
    print((before - clock[2]) & 0xffffff);
    for (int i = 0; i < network_OUTPUTS; i++) {
        union {
            float number;
            uint32_t bits;
        } value = {y[i]};
        print(value.bits);
    }
    call(0x18, (void *)0x20026);
}

__attribute__((section(".vectors"), used)) static void *const vectors[] = {
    (void *)0x203ffff0,
    (void *)start,
};
