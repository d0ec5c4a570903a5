/* The parts of edge_sampler.hpp that need no engine, for tests/runtime/test_cpp.py: what is computed goes to standard
 * output as it is; a refusal is status 2 and one line.
 */
#define EDGE_SAMPLER_WITHOUT_TENSORRT
#include "edge_sampler.hpp"

#include <clocale>
#include <iostream>

using namespace edge_sampler;

/* A value as a line for each of its parts; strings as their bytes in hexadecimal. */
static void print(Json const& value) {
    auto const hex = [](std::string const& text) {
        for (unsigned char c : text) std::printf("%02x", c);
        std::printf("\n");
    };
    static char const* const kinds[] = {"null", "boolean", "number", "string", "array", "object"};
    std::printf("%s\n", kinds[value.kind]);
    if (value.kind < Json::array) return hex(value.text);
    std::printf("%zu\n", value.items.size());
    for (std::size_t index = 0; index < value.items.size(); ++index) {
        if (value.kind == Json::object) hex(value.keys[index]);
        print(value.items[index]);
    }
}

static std::string exact(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.17g", value);
    return text;
}

struct Grouping : std::numpunct<char> { /* 1.200,5 */
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
};

int main(int count, char** values) {
    try {
        std::string const part = count > 2 ? values[1] : "", given = count > 2 ? values[2] : "";
        if (part == "noise") { /* noise SEED STREAM COUNT */
            std::vector<float> noise(std::stoul(values[4]));
            unit_noise(std::stoull(given), noise.data(), noise.size(), std::stoull(values[3]));
            std::fwrite(noise.data(), 4, noise.size(), stdout);
        } else if (part == "products") { /* of an array [n, 3]: a·b + c in float32, rounded twice */
            std::vector<double> const reals = read_npy(given).reals;
            for (std::size_t index = 0; index < reals.size(); index += 3) {
                auto const a = static_cast<float>(reals[index]), b = static_cast<float>(reals[index + 1]);
                float const sum = rounded_product(a, b) + static_cast<float>(reals[index + 2]);
                std::fwrite(&sum, 4, 1, stdout);
            }
        } else if (part == "ziggurat") { /* k, w, f */
            Ziggurat const tables;
            if (given == "k") std::fwrite(tables.k.data(), 4, tables.k.size(), stdout);
            if (given == "w") std::fwrite(tables.w.data(), 4, tables.w.size(), stdout);
            if (given == "f") std::fwrite(tables.f.data(), 4, tables.f.size(), stdout);
        } else if (part == "sha256") { /* of each beginning of a file */
            Bytes const content = read_file(given);
            for (std::ptrdiff_t size = 0; size <= static_cast<std::ptrdiff_t>(content.size()); ++size)
                std::printf("%s\n", sha256(Bytes(content.begin(), content.begin() + size)).c_str());
        } else if (part == "json") {
            Bytes const content = read_file(given);
            print(Json::parse(std::string(content.begin(), content.end())));
        } else if (part == "canonical") {
            Bytes const content = read_file(given);
            std::printf("%s\n", Json::parse(std::string(content.begin(), content.end())).canonical().c_str());
        } else if (part == "npy") { /* values in a line, of the kind that they are, and their shape */
            Given const array = read_npy(given);
            std::printf("%c\n[%s]\n", array.kind, joined(array.shape).c_str());
            std::string list;
            for (double value : array.reals) list += (list.empty() ? "" : ", ") + exact(value);
            for (std::int64_t value : array.wholes) list += (list.empty() ? "" : ", ") + std::to_string(value);
            std::printf("[%s]\n", list.c_str());
        } else if (part == "locale") { /* which numbers a program of that locale reads, and an array that it writes */
            std::locale::global(std::locale(std::locale::classic(), new Grouping));
            if (!std::setlocale(LC_ALL, given.c_str())) fail("no locale ", given);
            for (double real : Given::parse("0.5,-1.25e-1,1e999").reals) std::cout << exact(real) << ' ';
            Bytes const written = npy(Array(Type::uint8, {1200, 1}));
            std::cout << std::string(written.begin() + 10, written.begin() + 80) << '\n';
            fail("seed ", 1200, " is ", 0.5);
        } else {
            fail("unknown part ", part);
        }
    } catch (Error const& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
