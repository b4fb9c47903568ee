// SPDX-License-Identifier: MIT
// Streams vectors through a verilated block without VPI. ports.h, generated, names its streams.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <utility>
#include <vector>

#include "Vtop.h"
#include "ports.h"  // struct Port, ports(), N_PORTS; write_payload / read_payload per port

namespace {

constexpr int RESET_CYCLES = 2;

// splitmix64: one generator a port, so that a port's stalls do not depend on the others.
struct Random {
    uint64_t state;
    uint32_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return uint32_t((z ^ (z >> 31)) >> 32);
    }
};

struct End {
    uint64_t n_beats;  // offered (input) or expected (output)
    std::vector<uint32_t> beats;
    std::vector<uint64_t> cycles;
    Random random;
    bool offering = false;
    size_t position = 0;
    struct Memory* memory = nullptr;  // asked by an output's transfers, or answering through an input
};

using Words = std::vector<uint32_t>;

struct Image {
    uint64_t shape[2];  // words, and 32-bit words of each
    Words words;
};

// 32 bits of a beat, from any bit on.
uint32_t bits_from(const Words& beat, uint64_t from) {
    uint64_t two = 0;
    for (int part = 0; part < 2; ++part)
        if (from / 32 + part < beat.size()) two |= uint64_t(beat[from / 32 + part]) << 32 * part;
    return uint32_t(two >> from % 32);
}

// The rules are those of hw/harness/memory.py.
struct Memory {
    uint64_t header[8];  // request port, response port, image, address bits, latency, jitter, interval, writes
    Image* image;
    std::deque<std::pair<uint64_t, Words>> answers;  // cycle; the answer, or the request to write
    uint64_t busy_until = 0;
    Random random;

    uint64_t address_of(const Words& request) const { return request[0] & ((uint64_t(1) << header[3]) - 1); }

    void ask(const Words& request, uint64_t cycle) {
        const uint64_t jitter = random.next() % (header[5] + 1);
        const uint64_t due = std::max(cycle + header[4] + jitter, busy_until);
        busy_until = due + header[6];
        answers.emplace_back(due, header[7] ? request : read(request));
    }

    Words read(const Words& request) const {
        const uint64_t address = address_of(request), width = image->shape[1];
        const size_t n_response = PORTS[header[1]].n_words;
        Words beat(n_response + 1, 0);
        if (address < image->shape[0])
            std::copy_n(image->words.begin() + address * width, width, beat.begin());
        for (size_t i = width; i < n_response; ++i)  // the tag
            beat[i] = bits_from(request, header[3] + 32 * (i - width));
        return beat;
    }

    void write(const Words& request) {
        const uint64_t width = image->shape[1];
        uint32_t* word = &image->words.at(address_of(request) * width);
        for (uint64_t byte = 0; byte < 4 * width; ++byte) {
            if (!(bits_from(request, header[3] + 32 * width + byte) & 1)) continue;
            const uint32_t shift = 8 * (byte % 4), value = bits_from(request, header[3] + 8 * byte) & 0xff;
            word[byte / 4] = (word[byte / 4] & ~(0xffu << shift)) | value << shift;
        }
    }

    bool is_due(uint64_t cycle) const { return !answers.empty() && answers.front().first <= cycle; }

    Words answer() {
        Words beat = std::move(answers.front().second);
        answers.pop_front();
        if (!header[7]) return beat;
        write(beat);
        return Words(PORTS[header[1]].n_words, 0);
    }
};

void need(bool ok, const char* what) {
    if (!ok) {
        std::fprintf(stderr, "harness: %s\n", what);
        std::exit(3);
    }
}

template <typename T>
void read_all(std::FILE* file, T* data, size_t count) {
    need(std::fread(data, sizeof(T), count, file) == count, "job file too short");
}

template <typename T>
void write_all(std::FILE* file, const T* data, size_t count) {
    need(std::fwrite(data, sizeof(T), count, file) == count, "cannot write the log");
}

void clock(Vtop& top) {
    top.clk = 1;
    top.eval();
    top.clk = 0;
}

void reset(Vtop& top) {
    for (const Port& port : PORTS) port.is_input ? port.set_valid(top, 0) : port.set_ready(top, 0);
    top.rst = 1;
    for (int i = 0; i < RESET_CYCLES; ++i) {
        top.eval();
        clock(top);
    }
    top.rst = 0;
}

bool finished(const End* ends) {
    for (int p = 0; p < N_PORTS; ++p)
        if (!PORTS[p].is_input && ends[p].cycles.size() < ends[p].n_beats) return false;
    return true;
}

// One job: header, then the beats of each port in turn. One log: cycles run, then transfers of each port.
void run_job(Vtop& top, std::FILE* job, std::FILE* log) {
    uint64_t header[4];  // cycle budget, quiet cycles, stall threshold of 2^32, seed
    read_all(job, header, 4);
    End ends[N_PORTS];
    for (int p = 0; p < N_PORTS; ++p) {
        read_all(job, &ends[p].n_beats, 1);
        if (PORTS[p].is_input) {
            ends[p].beats.resize(ends[p].n_beats * PORTS[p].n_words);
            read_all(job, ends[p].beats.data(), ends[p].beats.size());
        }
        ends[p].random.state = header[3] * 1000003 + p;
    }
    uint64_t n_images, n_memories;
    read_all(job, &n_images, 1);
    std::vector<Image> images(n_images);
    for (Image& image : images) {
        read_all(job, image.shape, 2);
        image.words.resize(image.shape[0] * image.shape[1]);
        read_all(job, image.words.data(), image.words.size());
    }
    read_all(job, &n_memories, 1);
    std::vector<Memory> memories(n_memories);
    for (Memory& memory : memories) {
        read_all(job, memory.header, 8);
        memory.image = &images.at(memory.header[2]);
        memory.random.state = header[3] * 1000003 + N_PORTS + memory.header[1];
        ends[memory.header[0]].memory = ends[memory.header[1]].memory = &memory;
    }
    reset(top);

    uint64_t n_cycles = 0, quiet = 0;
    for (; n_cycles < header[0] && quiet < header[1]; ++n_cycles) {
        for (int p = 0; p < N_PORTS; ++p) {
            const Port& port = PORTS[p];
            End& end = ends[p];
            const bool stall = end.random.next() < header[2];
            if (!port.is_input) {
                port.set_ready(top, !stall);
            } else {
                if (!end.offering && !stall) {
                    if (end.memory && end.memory->is_due(n_cycles)) {
                        end.offering = true;
                        port.write_payload(top, end.memory->answer().data());
                    } else if (end.position < end.n_beats) {
                        end.offering = true;
                        port.write_payload(top, &end.beats[end.position * port.n_words]);
                    }
                }
                port.set_valid(top, end.offering);
            }
        }
        top.eval();
        for (int p = 0; p < N_PORTS; ++p) {
            const Port& port = PORTS[p];
            End& end = ends[p];
            if (!(port.valid(top) && port.ready(top))) continue;
            end.cycles.push_back(n_cycles);
            if (port.is_input) {
                end.offering = false;
                ++end.position;
            } else {
                end.beats.resize(end.beats.size() + port.n_words);
                port.read_payload(top, &end.beats[end.beats.size() - port.n_words]);
                if (end.memory) end.memory->ask({end.beats.end() - port.n_words, end.beats.end()}, n_cycles);
            }
        }
        clock(top);
        quiet = finished(ends) ? quiet + 1 : 0;
    }

    write_all(log, &n_cycles, 1);
    for (int p = 0; p < N_PORTS; ++p) {
        const uint64_t n = ends[p].cycles.size();
        write_all(log, &n, 1);
        write_all(log, ends[p].cycles.data(), n);
        if (!PORTS[p].is_input) write_all(log, ends[p].beats.data(), n * PORTS[p].n_words);
    }
}

}  // namespace

int main(int argc, char** argv) {
    need(argc == 3, "usage: harness JOBS LOG");
    std::FILE* job = std::fopen(argv[1], "rb");
    std::FILE* log = std::fopen(argv[2], "wb");
    need(job && log, "cannot open the job or the log file");
    Vtop top;
    uint64_t n_jobs;
    read_all(job, &n_jobs, 1);
    for (uint64_t i = 0; i < n_jobs; ++i) run_job(top, job, log);
    top.final();
    need(std::fclose(log) == 0, "cannot write the log");
    std::fclose(job);
    return 0;
}
