// A bundle's TensorRT engine from C++17, for programs that ship no Python: one header, TensorRT and the CUDA driver.
//
//     edge_sampler::Sampler sampler(edge_sampler::open_bundle("artifacts/edm-digits"));
//     edge_sampler::Array images = sampler.sample({0, 1, 2, 3});  // float32 [4, 1, 8, 8]
//
// What it makes of a seed is what Python's runtime makes of it. Whatever is wrong is an Error of one line. It includes
// NvInfer.h, of TensorRT 10 or later or of TensorRT-RTX. Where EDGE_SAMPLER_WITHOUT_TENSORRT is defined it does not,
// and lacks Sampler. The CUDA driver is loaded when it is needed. For Linux on 64-bit little-endian machines.
#pragma once

#ifdef __FAST_MATH__
#error "-ffast-math changes the noise: leave it out"
#endif

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <locale>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifndef EDGE_SAMPLER_WITHOUT_TENSORRT
#include <NvInfer.h>
#endif

namespace edge_sampler {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Text that does not depend on the program's locale, which may write 1,200 for 1200.
inline std::ostringstream text_stream() {
    std::ostringstream text;
    text.imbue(std::locale::classic());
    return text;
}

// A number of JSON; infinity beyond double. strtod would stop at the dot where the program's locale has a comma.
inline double real_of(std::string const& text) {
    std::istringstream in(text);
    in.imbue(std::locale::classic());
    double real = 0;
    in >> real;
    return in.fail() && std::abs(real) > 1 ? HUGE_VAL : real;
}

template <class... Parts>
[[noreturn]] void fail(Parts const&... parts) {
    std::ostringstream line = text_stream();
    (line << ... << parts);
    throw Error(line.str());
}

template <class List>
std::string joined(List const& list) {
    std::ostringstream line = text_stream();
    for (auto const& item : list) line << (line.tellp() > 0 ? ", " : "") << item;
    return line.str();
}

// ---- Noise: runtime/noise.py, bit for bit -------------------------------------------------------------------------

// Philox4x64-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011), as NumPy counts: one before the
// first block. 32 bits are the low half of a word, then its high half.
class Philox {
public:
    Philox(std::uint64_t low_key, std::uint64_t high_key) : key_{low_key, high_key} {}

    std::uint32_t next32() {
        if (has_half_) return has_half_ = false, half_;
        std::uint64_t const word = next64();
        has_half_ = true, half_ = static_cast<std::uint32_t>(word >> 32);
        return static_cast<std::uint32_t>(word);
    }

    float next_float() { return static_cast<float>(next32() >> 8) * (1.0f / 16777216.0f); }  // [0, 1)

private:
    using Words = std::array<std::uint64_t, 4>;

    static std::pair<std::uint64_t, std::uint64_t> product(std::uint64_t a, std::uint64_t b) {  // high half, low half
        std::uint64_t const a0 = a & 0xFFFFFFFF, a1 = a >> 32, b0 = b & 0xFFFFFFFF, b1 = b >> 32;
        std::uint64_t const middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (middle & 0xFFFFFFFF);
        return {a1 * b1 + (middle >> 32) + (other >> 32), a * b};
    }

    std::uint64_t next64() {
        if (position_ == 4) {
            ++counter_[0];  // and no carry: nobody draws 2^66 values
            block_ = counter_, position_ = 0;
            auto key = key_;
            for (int round = 0; round < 10; ++round) {
                auto const [high0, low0] = product(0xD2E7470EE14C6C93, block_[0]);
                auto const [high1, low1] = product(0xCA5A826395121157, block_[2]);
                block_ = {high1 ^ block_[1] ^ key[0], low1, high0 ^ block_[3] ^ key[1], low0};
                key[0] += 0x9E3779B97F4A7C15, key[1] += 0xBB67AE8584CAA73B;
            }
        }
        return block_[position_++];
    }

    std::array<std::uint64_t, 2> key_;
    Words counter_{}, block_{};
    std::size_t position_ = 4;
    bool has_half_ = false;
    std::uint32_t half_ = 0;
};

// The layers of Marsaglia & Tsang, "The Ziggurat Method for Generating Random Variables" (2000): 256 of one area under
// exp(-x²/2), for whole numbers of 23 bits; the last begins at R. `k` is rounded, as in NumPy; the paper cuts it off.
struct Ziggurat {
    static constexpr double R = 3.6541528853610087963519472518;
    std::array<std::uint32_t, 256> k{};
    std::array<float, 256> w{}, f{};

    Ziggurat() {
        auto const height = [](double x) { return std::exp(-0.5 * x * x); };
        double const whole = 8388608.0, tail = std::sqrt(std::acos(-1.0) / 2) * std::erfc(R / std::sqrt(2.0));
        double const area = R * height(R) + tail, base = area / height(R);
        k[0] = static_cast<std::uint32_t>(std::lround(R / base * whole));
        w[0] = static_cast<float>(base / whole), w[255] = static_cast<float>(R / whole);
        f[0] = 1, f[255] = static_cast<float>(height(R));
        double outer = R;
        for (std::size_t layer = 254; layer >= 1; --layer) {
            double const x = std::sqrt(-2 * std::log(area / outer + height(outer)));
            k[layer + 1] = static_cast<std::uint32_t>(std::lround(x / outer * whole));
            w[layer] = static_cast<float>(x / whole), f[layer] = static_cast<float>(height(x));
            outer = x;
        }
    }
};

// A product that is rounded before anything is added to it, whatever -ffp-contract says: GCC by default makes fused
// multiply-adds where the processor has them, as on ARM. (By way of doubles it would, too: GCC sees through that.)
inline float rounded_product(float a, float b) {
    float const volatile product = a * b;
    return product;
}

// One value as NumPy's standard_normal(dtype=float32) draws it. About one in four thousand is of the tail, where log1pf
// is the C library's, as it is in NumPy: another C library may round the last bit another way.
inline float standard_normal(Philox& philox, Ziggurat const& ziggurat) {
    auto const r = static_cast<float>(Ziggurat::R), inverse = static_cast<float>(1 / Ziggurat::R);
    for (;;) {
        std::uint32_t const bits = philox.next32(), layer = bits & 0xFF, magnitude = bits >> 9;
        bool const negative = (bits >> 8 & 1) != 0;
        float const distance = static_cast<float>(magnitude) * ziggurat.w[layer];
        float const x = negative ? -distance : distance;
        if (magnitude < ziggurat.k[layer]) return x;
        if (layer == 0) {
            for (;;) {
                float const beyond = rounded_product(-inverse, std::log1p(-philox.next_float()));
                float const y = -std::log1p(-philox.next_float());
                if (y + y > beyond * beyond) return (magnitude >> 8 & 1) ? -(r + beyond) : r + beyond;
            }
        }
        float const step = ziggurat.f[layer - 1] - ziggurat.f[layer];
        float const height = rounded_product(step, philox.next_float()) + ziggurat.f[layer];
        if (height < std::exp(-0.5 * x * x)) return x;
    }
}

inline void check_seed(std::uint64_t seed) {
    if (seed >> 63) fail("seed ", seed, " is out of range; seeds are 0 to 9223372036854775807");
}

// `count` values of unit noise for a seed, 0 to 2^63 - 1. Stream 0 is for samples.
inline void unit_noise(std::uint64_t seed, float* out, std::size_t count, std::uint64_t stream = 0) {
    static Ziggurat const ziggurat;
    check_seed(seed);
    Philox philox(seed, stream);
    for (std::size_t index = 0; index < count; ++index) out[index] = standard_normal(philox, ziggurat);
}

// ---- Files: SHA-256 (FIPS 180-4), bytes, JSON ---------------------------------------------------------------------

using Bytes = std::vector<unsigned char>;

inline std::string sha256(Bytes const& content) {
    auto const fraction = [](double x) { return static_cast<std::uint32_t>((x - std::floor(x)) * 4294967296.0); };
    std::array<std::uint32_t, 64> constants{};
    std::array<std::uint32_t, 8> state{};
    std::size_t found = 0;
    for (unsigned n = 2; found < 64; ++n) {  // of the first primes: fractions of cube roots, and of square roots
        bool prime = true;
        for (unsigned d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
        if (!prime) continue;
        if (found < 8) state[found] = fraction(std::sqrt(static_cast<double>(n)));
        constants[found++] = fraction(std::cbrt(static_cast<double>(n)));
    }
    auto const turn = [](std::uint32_t x, int by) { return x >> by | x << (32 - by); };
    auto const absorb = [&](unsigned char const* block) {
        std::array<std::uint32_t, 64> w{};
        for (std::size_t i = 0; i < 16; ++i)
            for (std::size_t byte = 0; byte < 4; ++byte) w[i] = w[i] << 8 | block[4 * i + byte];
        for (std::size_t i = 16; i < 64; ++i) {
            std::uint32_t const a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
        }
        auto [a, b, c, d, e, f, g, h] = state;
        for (std::size_t i = 0; i < 64; ++i) {
            std::uint32_t const one =
                h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i];
            std::uint32_t const two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
        }
        std::array<std::uint32_t, 8> const added{a, b, c, d, e, f, g, h};
        for (std::size_t i = 0; i < 8; ++i) state[i] += added[i];
    };
    std::size_t const whole = content.size() / 64 * 64;
    for (std::size_t start = 0; start < whole; start += 64) absorb(content.data() + start);
    Bytes rest(content.begin() + static_cast<std::ptrdiff_t>(whole), content.end());
    rest.push_back(0x80);
    while (rest.size() % 64 != 56) rest.push_back(0);
    std::uint64_t const bits = 8 * static_cast<std::uint64_t>(content.size());
    for (int shift = 56; shift >= 0; shift -= 8) rest.push_back(static_cast<unsigned char>(bits >> shift));
    for (std::size_t start = 0; start < rest.size(); start += 64) absorb(rest.data() + start);
    std::string digest;
    for (std::uint32_t word : state)
        for (int shift = 28; shift >= 0; shift -= 4) digest += "0123456789abcdef"[word >> shift & 15];
    return digest;
}

inline Bytes read_file(std::filesystem::path const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path)) fail("cannot read ", path.string(), ": ", std::strerror(errno));
    Bytes content(std::istreambuf_iterator<char>(file), {});
    if (file.bad()) fail("cannot read ", path.string());
    return content;
}

// A value of JSON (RFC 8259). Numbers keep their text, so that whole ones lose nothing.
struct Json {
    enum Kind { null, boolean, number, string, array, object } kind = null;
    std::string text;               // a number's or a string's; of a boolean "true" or "false"
    std::vector<Json> items;        // an array's, or an object's values
    std::vector<std::string> keys;  // an object's

    // Raises Error for what is no JSON, a name that stands twice in one object, and nesting deeper than 64.
    static Json parse(std::string const& text) {
        char const* at = text.c_str();
        char const* const end = at + text.size();
        Json const value = read(at, end, 0);
        if (skip(at, end) != end) fail("unexpected text behind the value");
        return value;
    }

    Json const* find(std::string const& key) const {
        for (std::size_t index = 0; index < keys.size(); ++index)
            if (keys[index] == key) return &items[index];
        return nullptr;
    }
    Json const& operator[](std::string const& key) const {
        Json const* const found = kind == object ? find(key) : nullptr;
        return found ? *found : (fail("no '", key, "'"), *this);
    }
    Json const& of(Kind wanted) const { return kind == wanted ? *this : (fail("a value is of another kind"), *this); }
    std::string const& words() const { return of(string).text; }
    bool yes() const { return of(boolean).text == "true"; }
    bool is_whole() const { return kind == number && text.find_first_of(".eE") == std::string::npos; }
    std::int64_t whole() const {
        errno = 0;
        long long const value = std::strtoll(text.c_str(), nullptr, 10);
        if (!is_whole() || errno) fail("'", text, "' is no whole number of 64 bits");
        return value;
    }

    // As Python's json.dumps writes it with sorted names and no space; a number keeps the text that it has.
    std::string canonical() const {
        std::string line;
        if (kind == object) {
            std::map<std::string, Json const*> sorted;
            for (std::size_t index = 0; index < keys.size(); ++index) sorted[keys[index]] = &items[index];
            for (auto const& [name, item] : sorted)
                line += (line.empty() ? "" : ",") + quoted(name) + ":" + item->canonical();
            return "{" + line + "}";
        }
        if (kind == array) {
            for (Json const& item : items) line += (line.empty() ? "" : ",") + item.canonical();
            return "[" + line + "]";
        }
        return kind == string ? quoted(text) : text;
    }

private:
    static constexpr char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";

    static std::string quoted(std::string const& text) {  // in ASCII
        std::string line = "\"";
        auto const unit = [&line](std::uint32_t value) {
            line += "\\u";
            for (int shift = 12; shift >= 0; shift -= 4) line += "0123456789abcdef"[value >> shift & 15];
        };
        for (std::size_t at = 0; at < text.size(); ++at) {
            auto const first = static_cast<unsigned char>(text[at]);
            if (char const* const found = std::strchr(meant, first); found && first && first != '/') {
                line += {'\\', escapes[found - meant]};
            } else if (first >= 32 && first < 127) {
                line += text[at];
            } else {
                int more = first < 0xC0 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
                std::uint32_t point = more ? first & (63u >> more) : first;
                for (; more > 0 && at + 1 < text.size(); --more)
                    point = point << 6 | (static_cast<unsigned char>(text[++at]) & 63u);
                if (point >= 0x10000) unit(0xD7C0 + (point >> 10));
                unit(point >= 0x10000 ? 0xDC00 | (point & 0x3FF) : point);
            }
        }
        return line + '"';
    }

    static char const*& skip(char const*& at, char const* end) {
        while (at != end && std::strchr(" \t\r\n", *at) && *at) ++at;
        return at;
    }

    static bool take(char const*& at, char const* end, char wanted) {
        return skip(at, end) != end && *at == wanted ? (++at, true) : false;
    }

    static Json read(char const*& at, char const* end, int depth) {
        if (depth > 64) fail("it is nested too deeply");
        if (skip(at, end) == end) fail("it ends too early");
        Json value;
        if (*at == '"') {
            value.kind = string, value.text = read_string(at, end);
        } else if (take(at, end, '{')) {
            value.kind = object;
            for (bool more = !take(at, end, '}'); more; more = comma(at, end, '}')) {
                if (skip(at, end) == end || *at != '"') fail("a name is missing");
                value.keys.push_back(read_string(at, end));
                if (!take(at, end, ':')) fail("a colon is missing");
                value.items.push_back(read(at, end, depth + 1));
            }
            std::vector<std::string> names = value.keys;
            std::sort(names.begin(), names.end());
            auto const twice = std::adjacent_find(names.begin(), names.end());
            if (twice != names.end()) fail("the name '", *twice, "' stands twice in one object");
        } else if (take(at, end, '[')) {
            value.kind = array;
            for (bool more = !take(at, end, ']'); more; more = comma(at, end, ']'))
                value.items.push_back(read(at, end, depth + 1));
        } else {
            char const* const start = at;
            while (at != end && (std::isalnum(static_cast<unsigned char>(*at)) || std::strchr("+-.", *at)) && *at) ++at;
            value.text.assign(start, at);
            bool const known = value.text == "true" || value.text == "false";
            value.kind = known ? boolean : value.text == "null" ? null : number;
            if (value.kind == number && !is_number(value.text))
                fail("unexpected '", value.text.empty() ? std::string(1, *at) : value.text, "'");
        }
        return value;
    }

    static bool comma(char const*& at, char const* end, char close) {
        if (take(at, end, close)) return false;
        return take(at, end, ',') ? true : (fail("a comma is missing"), false);
    }

    static bool is_number(std::string const& text) {
        char const* at = text.c_str();
        auto const digits = [&at] {
            char const* const start = at;
            while (*at >= '0' && *at <= '9') ++at;
            return at > start;
        };
        if (*at == '-') ++at;
        if (*at == '0' ? (++at, false) : !digits()) return false;
        if (*at == '.' && (++at, !digits())) return false;
        if (*at == 'e' || *at == 'E') {
            ++at;
            if (*at == '+' || *at == '-') ++at;
            if (!digits()) return false;
        }
        return *at == 0;
    }

    static std::string read_string(char const*& at, char const* end) {
        std::string text;
        for (++at; at != end && *at != '"'; ++at) {
            if (static_cast<unsigned char>(*at) < 32) fail("a string holds a control character");
            if (*at != '\\') {
                text += *at;
                continue;
            }
            if (++at == end) break;
            if (*at == 'u') {
                append_utf8(text, code_point(at, end));
            } else if (char const* const found = std::strchr(escapes, *at); found && *at) {
                text += meant[found - escapes];
            } else {
                fail("unknown escape in a string");
            }
        }
        if (at == end) fail("a string has no end");
        return ++at, text;
    }

    static std::uint32_t code_point(char const*& at, char const* end) {  // at 'u'; leaves `at` on the last digit
        auto const unit = [&] {
            if (end - at < 5) fail("a string has no end");
            std::uint32_t value = 0;
            for (int digit = 0; digit < 4; ++digit) {
                char const c = *++at;
                if (!std::isxdigit(static_cast<unsigned char>(c))) fail("unknown escape in a string");
                value = value * 16 + static_cast<std::uint32_t>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
            }
            return value;
        };
        std::uint32_t const first = unit();
        if (first < 0xD800 || first > 0xDFFF) return first;
        bool const pair = first < 0xDC00 && end - at > 2 && at[1] == '\\' && at[2] == 'u';
        std::uint32_t const second = pair ? (at += 2, unit()) : 0;
        if (second < 0xDC00 || second > 0xDFFF) fail("half a surrogate pair in a string");
        return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    }

    static void append_utf8(std::string& text, std::uint32_t point) {
        int const more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
        static unsigned char const leads[] = {0, 0xC0, 0xE0, 0xF0};
        text += static_cast<char>(leads[more] | point >> 6 * more);
        for (int left = more; left-- > 0;) text += static_cast<char>(0x80 | (point >> 6 * left & 0x3F));
    }
};

// ---- Arrays -------------------------------------------------------------------------------------------------------

enum class Type { float32, int64, boolean, uint8 };
using Shape = std::vector<std::int64_t>;

inline std::size_t size_of(Type type) { return type == Type::float32 ? 4 : type == Type::int64 ? 8 : 1; }
inline char const* name_of(Type type) {
    static char const* const names[] = {"float32", "int64", "bool", "uint8"};
    return names[static_cast<int>(type)];
}
inline std::size_t count_of(Shape const& shape) {
    std::size_t count = 1;
    for (std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    return count;
}

struct Array {  // in C order
    Type type = Type::float32;
    Shape shape;
    Bytes bytes;

    Array() = default;
    Array(Type type, Shape shape) : type(type), shape(std::move(shape)), bytes(count_of(this->shape) * size_of(type)) {}
    template <class T>
    T* data() { return reinterpret_cast<T*>(bytes.data()); }
    template <class T>
    T const* data() const { return reinterpret_cast<T const*>(bytes.data()); }
};

// Values as a caller gives them, before it is known what they are for.
struct Given {
    char kind = 'f';  // f, i or b, as NumPy's kinds
    Shape shape;
    std::vector<double> reals;         // of kind f
    std::vector<std::int64_t> wholes;  // of kinds i and b

    // "1", which is of shape [], or "1,2,0.5", [3]; true and false as well. Raises Error for anything else.
    static Given parse(std::string const& text) {
        Given given;
        std::vector<Json> values = Json::parse("[" + text + "]").items;
        auto const all = [&](auto const& holds) { return std::all_of(values.begin(), values.end(), holds); };
        bool const truths = all([](Json const& value) { return value.kind == Json::boolean; });
        if (values.empty() || (!truths && !all([](Json const& value) { return value.kind == Json::number; })))
            fail("not numbers");
        given.kind = truths ? 'b' : all([](Json const& value) { return value.is_whole(); }) ? 'i' : 'f';
        for (Json const& value : values) {
            if (given.kind == 'f') given.reals.push_back(real_of(value.text));
            else given.wholes.push_back(truths ? value.yes() : value.whole());
        }
        if (values.size() > 1) given.shape = {static_cast<std::int64_t>(values.size())};
        return given;
    }
};

// NumPy's format (numpy.lib.format), of float32, float64, int32, int64 and bool in C order.
inline Given read_npy(std::filesystem::path const& path) {
    Bytes const content = read_file(path);
    auto const wrong = [&](auto const&... why) { fail(path.string(), " is no .npy file that can be read: ", why...); };
    std::size_t const before = content.size() > 10 && content[6] == 1 ? 10 : 12;
    if (content.size() < before || std::memcmp(content.data(), "\x93NUMPY", 6) != 0) wrong("it begins otherwise");
    std::size_t length = content[8] + 256u * content[9];
    if (before == 12) length += 65536u * content[10] + 16777216u * content[11];
    if (content.size() < before + length) wrong("its header is cut off");
    std::string const header(reinterpret_cast<char const*>(content.data()) + before, length);
    auto const field = [&](std::string const& name, std::size_t count) {
        std::size_t const at = header.find("'" + name + "': ");
        if (at == std::string::npos) wrong("its header has no ", name);
        return header.substr(at + name.size() + 4, count);
    };
    std::string const descr = field("descr", 5), shape = field("shape", std::string::npos);
    std::size_t const open = shape.find('('), close = shape.find(')');
    if (field("fortran_order", 5) != "False") wrong("it is not in C order");
    if (open != 0 || close == std::string::npos) wrong("its shape is damaged");
    Given given;
    std::istringstream sizes(shape.substr(1, close - 1));
    for (std::string size; std::getline(sizes, size, ',');) {
        if (size.find_first_not_of(' ') == std::string::npos) continue;
        std::int64_t const value = std::strtoll(size.c_str(), nullptr, 10);
        if (value < 0 || value > static_cast<std::int64_t>(content.size())) wrong("its shape is damaged");
        given.shape.push_back(value);
    }
    std::size_t count = 1;
    for (std::int64_t size : given.shape)
        if ((count *= static_cast<std::size_t>(size)) > content.size()) wrong("it is cut off");
    auto const fill = [&](auto& values, auto as) {
        if (content.size() != before + length + count * sizeof as) wrong("its size is not that of its shape");
        for (std::size_t index = 0; index < count; ++index) {
            std::memcpy(&as, content.data() + before + length + index * sizeof as, sizeof as);
            values.push_back(as);
        }
    };
    given.kind = descr == "'|b1'" ? 'b' : descr.find('i') != std::string::npos ? 'i' : 'f';
    if (descr == "'<f4'") fill(given.reals, float());
    else if (descr == "'<f8'") fill(given.reals, double());
    else if (descr == "'<i4'") fill(given.wholes, std::int32_t());
    else if (descr == "'<i8'") fill(given.wholes, std::int64_t());
    else if (descr == "'|b1'") fill(given.wholes, static_cast<unsigned char>(0));
    else wrong("its values are ", descr, "; allowed: float32, float64, int32, int64, bool");
    return given;
}

inline Bytes npy(Array const& array) {
    static char const* const names[] = {"<f4", "<i8", "|b1", "|u1"};
    std::string header = std::string("{'descr': '") + names[static_cast<int>(array.type)] +
                         "', 'fortran_order': False, 'shape': (" + joined(array.shape) +
                         (array.shape.size() == 1 ? ",), }" : "), }");
    header.resize((10 + header.size()) / 64 * 64 + 64 - 10 - 1, ' ');
    header += '\n';
    Bytes content{0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0};
    content.push_back(static_cast<unsigned char>(header.size() & 255));
    content.push_back(static_cast<unsigned char>(header.size() >> 8));
    content.insert(content.end(), header.begin(), header.end());
    content.insert(content.end(), array.bytes.begin(), array.bytes.end());
    return content;
}

// ---- Bundles: runtime/bundle.py, verified.py, inputs.py, engine_record.py -----------------------------------------

constexpr std::int64_t SCHEMA = 3;

struct Size {  // of one axis: a number, or so many times the size of an axis with a name, which a call chooses
    std::int64_t number = 0;
    std::string name;

    std::string text() const {
        return name.empty() ? std::to_string(number) : number == 1 ? name : std::to_string(number) + '*' + name;
    }
};

struct Condition {
    std::vector<Size> shape;  // of one sample
    Type type = Type::float32;
    std::int64_t limit = 0;  // whole numbers below this, or `null`; 0: anything goes
    std::optional<double> null;
    bool is_text = false;
};

struct EngineRecord {
    std::string file, flavour, version, precision;
    std::vector<std::string> targets;  // compute capabilities, as sm86
    std::int64_t least = 1, largest = 1;
    bool loop = false;
};

struct Bundle {
    std::filesystem::path folder;
    std::map<std::string, std::string> sha256;  // by file
    std::vector<Size> shape;                    // of one sample's noise
    float temperature = 1;                      // what scales it, for which the sampler is fitted
    std::vector<std::pair<std::string, Condition>> conditions;
    std::map<std::string, std::array<std::int64_t, 4>> axes;  // least, usual, largest sizes, and the step
    std::string output;
    Type type = Type::float32;  // of what is made: uint8 is [batch, height, width, channels]
    bool random_weights = false;
    std::vector<EngineRecord> engines;
};

// "length" or "8*length".
inline Size size_of(std::string const& text) {
    std::size_t const digits = text.find_first_not_of("0123456789");
    bool const multiple = 1 <= digits && digits <= 9 && text[0] != '0' && text[digits] == '*';
    return multiple ? Size{std::stoll(text), text.substr(digits + 1)} : Size{1, text};
}

inline std::vector<Size> sizes_of(Json const& shape) {
    std::vector<Size> sizes;
    for (Json const& size : shape.of(Json::array).items)
        sizes.push_back(size.kind == Json::string ? size_of(size.text) : Size{size.whole(), ""});
    return sizes;
}

inline Type type_of(std::string const& name) {
    for (Type type : {Type::float32, Type::int64, Type::boolean, Type::uint8})
        if (name == name_of(type)) return type;
    fail("unknown dtype ", name);
}

inline Condition condition_of(Json const& recorded) {
    Condition condition;
    condition.shape = sizes_of(recorded["shape"]);
    condition.type = type_of(recorded["dtype"].words());
    condition.limit = recorded["choices"].whole();
    if (Json const* ids = recorded.find("ids"))
        condition.limit = condition.limit ? std::min(condition.limit, ids->whole()) : ids->whole();
    if (recorded["null"].kind == Json::number) condition.null = real_of(recorded["null"].text);
    condition.is_text = recorded.find("text") != nullptr;
    return condition;
}

inline EngineRecord engine_of(Json const& recorded) {
    EngineRecord engine;
    engine.file = recorded["file"].words(), engine.flavour = recorded["flavour"].words();
    engine.version = recorded["version"].words(), engine.precision = recorded["precision"].words();
    for (Json const& target : recorded["targets"].of(Json::array).items) engine.targets.push_back(target.words());
    engine.least = recorded["batch"]["min"].whole(), engine.largest = recorded["batch"]["max"].whole();
    if (engine.least < 1 || engine.least > engine.largest) fail("an engine's batch is out of order");
    if (Json const* loop = recorded.find("loop")) engine.loop = loop->yes();
    return engine;
}

// Whether it is a file's name in a bundle, as FILE of manifest.py has it: never one outside of it.
inline bool is_file(std::string const& name) {
    char const* const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.+-";
    std::istringstream parts(name + "/");
    for (std::string part; std::getline(parts, part, '/');)
        if (part.empty() || part == "." || part == ".." || part.find_first_not_of(allowed) != std::string::npos)
            return false;
    return true;
}

// SHA-256 of all members of a manifest but the one that holds it, as hash_of of manifest.py makes it.
inline std::string hash_of(Json manifest) {
    auto const own = std::find(manifest.keys.begin(), manifest.keys.end(), "manifest_sha256") - manifest.keys.begin();
    manifest.items.erase(manifest.items.begin() + own), manifest.keys.erase(manifest.keys.begin() + own);
    std::string const written = manifest.canonical();
    return sha256(Bytes(written.begin(), written.end()));
}

// Raises Error when there is no bundle, its manifest is damaged, or of another schema. Files are verified when they are
// read.
inline Bundle open_bundle(std::filesystem::path const& folder) {
    std::filesystem::path const path = folder / "manifest.json";
    std::error_code none;
    if (!std::filesystem::is_regular_file(path, none))
        fail("no bundle at ", folder.string(), ": it has no manifest.json");
    Bytes const content = read_file(path);
    try {
        Json const manifest = Json::parse(std::string(content.begin(), content.end()));
        if (manifest["schema"].whole() != SCHEMA)
            fail("its schema is ", manifest["schema"].text, ", and this header reads ", SCHEMA);
        if (manifest["manifest_sha256"].words() != hash_of(manifest))
            fail("its manifest_sha256 is not that of what it says: copy or export again");
        Bundle bundle;
        bundle.folder = folder;
        Json const &files = manifest["files"].of(Json::object), &inputs = manifest["inputs"];
        for (std::size_t index = 0; index < files.keys.size(); ++index) {
            std::string const& name = files.keys[index];
            if (!is_file(name)) fail("it lists '", name, "', which is no file's name in a bundle");
            bundle.sha256[name] = files.items[index]["sha256"].words();
        }
        bundle.shape = sizes_of(inputs["shape"]);
        if (Json const* told = manifest.find("temperature"))
            bundle.temperature = static_cast<float>(real_of(told->of(Json::number).text));
        Json const &conditions = inputs["conditions"].of(Json::object), &axes = inputs["axes"].of(Json::object);
        for (std::size_t index = 0; index < conditions.keys.size(); ++index)
            bundle.conditions.emplace_back(conditions.keys[index], condition_of(conditions.items[index]));
        for (std::size_t index = 0; index < axes.keys.size(); ++index) {
            std::vector<Json> const& sizes = axes.items[index].of(Json::array).items;
            if (sizes.size() != 3 && sizes.size() != 4) fail("an axis has not three sizes");
            std::int64_t const step = sizes.size() == 4 ? sizes[3].whole() : 1;
            if (step < 1) fail("an axis has a step of ", step);
            bundle.axes[axes.keys[index]] = {sizes[0].whole(), sizes[1].whole(), sizes[2].whole(), step};
        }
        auto const named = [&](std::vector<Size> const& shape) {
            for (Size const& size : shape)
                if (size.name.empty() ? size.number < 0 : !bundle.axes.count(size.name)) fail("a shape is damaged");
        };
        named(bundle.shape);
        for (auto const& [name, condition] : bundle.conditions) named(condition.shape);
        bundle.output = manifest["output"]["name"].words(), bundle.type = type_of(manifest["dtype"].words());
        bundle.random_weights = manifest["model"]["random_weights"].yes();
        if (Json const* engines = manifest.find("engines"))
            for (Json const& engine : engines->of(Json::array).items) bundle.engines.push_back(engine_of(engine));
        return bundle;
    } catch (Error const& error) {
        fail(path.string(), " is damaged, or of another version: ", error.what());
    }
}

// One of the bundle's files: these very bytes have the SHA-256 of the manifest, whatever happens to the file meanwhile.
inline Bytes read_verified(Bundle const& bundle, std::string const& name) {
    std::filesystem::path const path = bundle.folder / name;
    auto const recorded = bundle.sha256.find(name);
    if (recorded == bundle.sha256.end()) fail(bundle.folder.string(), " holds no ", name);
    std::error_code none;
    if (!std::filesystem::is_regular_file(path, none))
        fail(path.string(), " is missing, though the manifest lists it: copy the whole bundle again");
    Bytes content = read_file(path);
    if (sha256(content) != recorded->second)
        fail(path.string(), " is not the file the manifest describes (its SHA-256 differs): copy or export again");
    return content;
}

// Whether an engine's recorded version is the library's. TensorRT's Python module may leave out the last number, as on
// a Jetson.
inline bool same_version(std::string const& recorded, std::string const& library) {
    return recorded == library || (std::count(recorded.begin(), recorded.end(), '.') >= 2 &&
                                   library.compare(0, recorded.size() + 1, recorded + ".") == 0);
}

// The bundle's engine that fits the library and the GPU; of several, in half precision, then unrolled, then the first.
// Raises Error saying what the engines there need and what was found.
inline EngineRecord find_engine(Bundle const& bundle, std::string const& flavour, std::string const& version,
                                std::string const& capability) {
    std::vector<EngineRecord> engines;
    for (EngineRecord const& engine : bundle.engines)
        if (engine.flavour == flavour) engines.push_back(engine);
    if (engines.empty()) fail("the bundle holds no engine for it: python -m export engine BUNDLE --engine ", flavour);
    auto const order = [](EngineRecord const& engine) {
        std::string const& of = engine.precision;
        return std::pair(of == "fp16" ? 0 : of == "bf16" ? 1 : of == "fp32" ? 2 : 3, engine.loop);
    };
    std::stable_sort(engines.begin(), engines.end(), [&](auto const& a, auto const& b) { return order(a) < order(b); });
    std::string reasons;
    for (EngineRecord const& engine : engines) {
        reasons += reasons.empty() ? "" : "; ";
        auto const& targets = engine.targets;
        if (!same_version(engine.version, version))
            reasons += engine.file + " needs " + flavour + " " + engine.version + ", and " + version + " is installed";
        else if (std::find(targets.begin(), targets.end(), capability) == targets.end())
            reasons += engine.file + " was built for " + joined(targets) + ", and this GPU is " + capability;
        else
            return engine;
    }
    fail(reasons, ": build it again");
}

using Conditions = std::map<std::string, Given>;
using Sizes = std::map<std::string, std::int64_t>;  // of axes with names

inline std::string wanted(Condition const& condition) {
    std::ostringstream text = text_stream();
    text << name_of(condition.type) << " [";
    for (Size const& size : condition.shape)
        text << (text.str().back() == '[' ? "" : ", ") << size.text();
    text << ']';
    if (condition.limit) text << ", 0 to " << condition.limit - 1;
    bool const inside = condition.null >= 0 && condition.null < static_cast<double>(condition.limit);
    if (condition.limit && condition.null && !inside) text << " or " << *condition.null;
    if (condition.is_text) text << ", of token ids: text is for Python's runtime";
    return text.str();
}

inline void set_size(Bundle const& bundle, std::string const& axis, std::int64_t size, std::string const& says,
                     Sizes& sizes) {
    auto const& [least, usual, largest, step] = bundle.axes.at(axis);
    if (size < least || size > largest || size % step)
        fail(says, "; this sampler takes ", least, " to ", largest,
             step > 1 ? " in steps of " + std::to_string(step) : "");
    if (sizes.emplace(axis, size).first->second != size)
        fail(says, ", and another condition has ", sizes[axis]);
}

// One condition for `count` samples, [count, …]: given as one value for all, or one for each.
inline Array checked(Bundle const& bundle, std::string const& name, Condition const& condition, Given const& given,
                     std::int64_t count, Sizes& sizes) {
    std::string const must = name + " must be " + wanted(condition) + ", one or " + std::to_string(count) +
                             ", one for each seed";
    std::string const kinds = condition.type == Type::float32 ? "fi" : condition.type == Type::int64 ? "i" : "b";
    if (kinds.find(given.kind) == std::string::npos)
        fail(name, " is ", given.kind == 'f' ? "fractions" : given.kind == 'i' ? "whole numbers" : "bools", "; ", must);
    std::size_t const rank = condition.shape.size(), behind = given.shape.size() - rank;  // 1: there is one for each
    bool fits = given.shape.size() == rank ||
                (given.shape.size() == rank + 1 && (given.shape[0] == 1 || given.shape[0] == count));
    for (std::size_t axis = 0; fits && axis < rank; ++axis)
        fits = !condition.shape[axis].name.empty() || condition.shape[axis].number == given.shape[behind + axis];
    if (!fits) fail(name, " has shape [", joined(given.shape), "]; ", must);
    Shape shape{count};
    for (std::size_t axis = 0; axis < rank; ++axis) {
        shape.push_back(given.shape[behind + axis]);
        Size const& size = condition.shape[axis];
        if (size.name.empty()) continue;
        std::string const says = name + " has " + std::to_string(shape.back()) + " of " + size.text();
        std::string const of = std::to_string(shape.back() / size.number);
        if (shape.back() % size.number) fail(says, ", which is no multiple of ", size.number);
        set_size(bundle, size.name, shape.back() / size.number,
                 size.number > 1 ? says + ", which is " + size.name + " " + of : says, sizes);
    }
    for (double real : given.reals) {
        if (!std::isfinite(real)) fail(name, " holds NaN or infinity");
        if (std::abs(real) >= 0x1.ffffffp127) fail(name, " holds ", real, ", which is beyond float32");  // rounded
    }
    auto const check = [&](auto value) {
        auto const number = static_cast<double>(value);
        bool const among = number >= 0 && number < static_cast<double>(condition.limit);
        if (condition.limit && !among && number != condition.null)
            fail(name, " holds ", value, ", which is out of range; ", must);
    };
    std::for_each(given.reals.begin(), given.reals.end(), check);
    std::for_each(given.wholes.begin(), given.wholes.end(), check);
    Array array(condition.type, shape);
    std::size_t const whole = count_of(shape), values = given.reals.size() + given.wholes.size();
    for (std::size_t index = 0; index < whole; ++index) {
        std::size_t const from = index % values;  // one value for all comes round for each
        if (condition.type == Type::int64) array.data<std::int64_t>()[index] = given.wholes[from];
        else if (condition.type == Type::boolean) array.bytes[index] = given.wholes[from] != 0;
        else if (given.kind == 'f') array.data<float>()[index] = static_cast<float>(given.reals[from]);
        else array.data<float>()[index] = static_cast<float>(given.wholes[from]);
    }
    return array;
}

struct Inputs {
    Shape noise;                              // of one sample
    float temperature;                        // of the bundle
    std::map<std::string, Array> conditions;  // [n, …]

    void make_noise(std::uint64_t seed, float* out) const {
        std::size_t const count = count_of(noise);
        unit_noise(seed, out, count);
        for (float* value = out; value < out + count; ++value) *value *= temperature;
    }
};

// What an engine is given for these seeds. Raises Error for a seed out of range, and for a condition that is missing,
// unknown, or of another kind, shape or range.
inline Inputs inputs_of(Bundle const& bundle, std::vector<std::uint64_t> const& seeds, Conditions const& given) {
    auto const count = static_cast<std::int64_t>(seeds.size());
    if (seeds.empty()) fail("there are no seeds; pass at least one");
    for (std::uint64_t seed : seeds) check_seed(seed);
    std::vector<std::string> known;
    for (auto const& [name, condition] : bundle.conditions) known.push_back(name);
    for (auto const& [name, limits] : bundle.axes) known.push_back(name);
    for (auto const& [name, value] : given)
        if (std::find(known.begin(), known.end(), name) == known.end())
            fail("unknown condition '", name, "': it takes ", known.empty() ? "no conditions" : joined(known));
    Inputs inputs{{}, bundle.temperature, {}};
    Sizes sizes;
    for (auto const& [name, condition] : bundle.conditions) {
        auto const value = given.find(name);
        if (value == given.end()) fail(name, " is missing: pass ", name, "=", wanted(condition));
        inputs.conditions[name] = checked(bundle, name, condition, value->second, count, sizes);
    }
    for (auto const& [name, limits] : bundle.axes) {
        if (auto const value = given.find(name); value != given.end()) {
            if (value->second.kind != 'i' || !value->second.shape.empty()) fail(name, " must be one whole number");
            std::int64_t const size = value->second.wholes[0];
            set_size(bundle, name, size, name + " is " + std::to_string(size), sizes);
        }
        sizes.emplace(name, limits[1]);
    }
    for (Size const& size : bundle.shape) inputs.noise.push_back(size.name.empty() ? size.number : sizes[size.name]);
    return inputs;
}

// ---- The GPU: runtime/cuda.py -------------------------------------------------------------------------------------

// The first GPU, through its primary context, which TensorRT uses as well. The driver's calls keep their names and
// signatures over versions (CUDA Driver API reference), so that no header of CUDA's is needed.
class Device {
    struct Symbol {
        void* address;
        template <class Function>
        operator Function*() const { return reinterpret_cast<Function*>(address); }
    };
    static Symbol symbol(char const* name) {
        static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
        if (!library) fail("no NVIDIA driver here (libcuda.so.1 cannot be loaded): install one");
        void* const address = dlsym(library, name);
        if (!address) fail("the NVIDIA driver is too old (it lacks ", name, "): install a later one");
        return {address};
    }

    int (*get_error_)(int, char const**) = symbol("cuGetErrorString");
    int (*release_)(int) = symbol("cuDevicePrimaryCtxRelease_v2");
    int (*set_current_)(void*) = symbol("cuCtxSetCurrent");
    int device_ = 0;
    void* context_ = nullptr;

public:
    int (*allocate)(void**, std::size_t) = symbol("cuMemAlloc_v2");
    int (*free)(void*) = symbol("cuMemFree_v2");
    int (*allocate_host)(void**, std::size_t) = symbol("cuMemAllocHost_v2");
    int (*free_host)(void*) = symbol("cuMemFreeHost");
    int (*to_device)(void*, void const*, std::size_t, void*) = symbol("cuMemcpyHtoDAsync_v2");
    int (*to_host)(void*, void const*, std::size_t, void*) = symbol("cuMemcpyDtoHAsync_v2");
    int (*make_stream)(void**, unsigned) = symbol("cuStreamCreate");
    int (*free_stream)(void*) = symbol("cuStreamDestroy_v2");
    int (*synchronize)(void*) = symbol("cuStreamSynchronize");
    std::string name, capability;  // as sm89

    Device() {
        int (*const init)(unsigned) = symbol("cuInit");
        int (*const get)(int*, int) = symbol("cuDeviceGet");
        int (*const get_name)(char*, int, int) = symbol("cuDeviceGetName");
        int (*const get_attribute)(int*, int, int) = symbol("cuDeviceGetAttribute");
        int (*const retain)(void**, int) = symbol("cuDevicePrimaryCtxRetain");
        if (int const code = init(0)) fail("the NVIDIA driver finds no GPU (cuInit: CUDA error ", code, ")");
        check(get(&device_, 0), "cuDeviceGet");
        char words[256] = "";
        check(get_name(words, sizeof words, device_), "cuDeviceGetName");
        int major = 0, minor = 0;
        check(get_attribute(&major, 75, device_), "cuDeviceGetAttribute");  // compute capability
        check(get_attribute(&minor, 76, device_), "cuDeviceGetAttribute");
        name = words, capability = "sm" + std::to_string(major) + std::to_string(minor);
        check(retain(&context_, device_), "cuDevicePrimaryCtxRetain");
    }
    ~Device() {
        set_current_(nullptr);
        release_(device_);
    }
    Device(Device const&) = delete;
    Device& operator=(Device const&) = delete;

    void enter() const { check(set_current_(context_), "cuCtxSetCurrent"); }  // for the calling thread alone

    void check(int code, char const* call) const {
        if (code == 0) return;
        char const* words = nullptr;
        get_error_(code, &words);
        fail(call, " failed: ", words ? words : "unknown error", " (CUDA error ", code, ")");
    }
};

// Owns what is made on a device; all of it is freed at the end, in reverse.
class Memory {
public:
    explicit Memory(Device const& device) : device_(device) {}
    ~Memory() {
        for (; !made_.empty(); made_.pop_back()) made_.back().second(made_.back().first);
    }
    Memory(Memory const&) = delete;
    Memory& operator=(Memory const&) = delete;

    void* on_device(std::size_t size) { return made(device_.allocate, size, device_.free, "cuMemAlloc_v2"); }
    void* pinned(std::size_t size) { return made(device_.allocate_host, size, device_.free_host, "cuMemAllocHost_v2"); }
    void* stream() { return made(device_.make_stream, 1u, device_.free_stream, "cuStreamCreate"); }  // non-blocking

private:
    using Free = int (*)(void*);

    template <class Argument>
    void* made(int (*make)(void**, Argument), Argument argument, Free free, char const* call) {
        void* handle = nullptr;
        made_.reserve(made_.size() + 1);
        device_.check(make(&handle, argument), call);
        made_.emplace_back(handle, free);
        return handle;
    }

    Device const& device_;
    std::vector<std::pair<void*, Free>> made_;
};

// ---- The engine: runtime/backends/trt.py --------------------------------------------------------------------------

#ifndef EDGE_SAMPLER_WITHOUT_TENSORRT

#ifdef TRT_MAJOR_RTX
inline char const* const FLAVOUR = "tensorrt-rtx";
#else
inline char const* const FLAVOUR = "tensorrt";
static_assert(NV_TENSORRT_MAJOR >= 10, "TensorRT 10 or later is needed");
#endif

// The release of the library that is linked, as 10.13.0.35; the headers' is of no account to an engine.
inline std::string library_version() {
    std::ostringstream version = text_stream();
    version << getInferLibMajorVersion() << '.' << getInferLibMinorVersion() << '.' << getInferLibPatchVersion() << '.'
            << getInferLibBuildVersion();
    return version.str();
}

class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        std::lock_guard<std::mutex> const lock(mutex_);  // TensorRT has threads of its own
        if (severity <= Severity::kERROR) std::snprintf(last_error, sizeof last_error, "%s", message);
    }
    char last_error[512] = "it gave no reason";

private:
    std::mutex mutex_;
};

// One engine of a bundle on the first GPU. One thread may use it at a time.
class Sampler {
public:
    // Raises Error when the bundle has no engine for this library and GPU, or its bytes are not those that were built.
    explicit Sampler(Bundle bundle)
        : bundle_(std::move(bundle)), record_(find_engine(bundle_, FLAVOUR, library_version(), device_.capability)) {
        Bytes const plan = read_verified(bundle_, record_.file);  // deserialising a plan runs what is in it
        device_.enter();
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        if (!runtime_) fail(FLAVOUR, " cannot be started: ", logger_.last_error);
        runtime_->setEngineHostCodeAllowed(false);
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine_) fail(FLAVOUR, " cannot load ", record_.file, ": ", logger_.last_error);
    }

    ~Sampler() {
        try {
            device_.enter();  // on a thread that has not sampled
        } catch (Error const&) {  // then nothing can be freed
        }
        lane_.reset();
        engine_.reset();
        runtime_.reset();
    }
    Sampler(Sampler const&) = delete;
    Sampler& operator=(Sampler const&) = delete;

    Bundle const& bundle() const { return bundle_; }
    std::string description() const {
        return std::string(FLAVOUR) + " " + record_.version + ", " + device_.name + ", " + record_.file;
    }

    // What the engine makes of seeds, [n, …]. A condition is one value for all, or one for each seed. Raises Error as
    // inputs_of does, and when the GPU or the library refuse.
    Array sample(std::vector<std::uint64_t> const& seeds, Conditions const& conditions = {}) {
        Inputs const inputs = inputs_of(bundle_, seeds, conditions);
        device_.enter();
        std::map<std::string, Shape> shapes{{NOISE, inputs.noise}};
        for (auto const& [name, array] : inputs.conditions)
            shapes[name] = Shape(array.shape.begin() + 1, array.shape.end());
        if (!lane_ || lane_->shapes != shapes) {
            lane_.reset();
            lane_ = std::make_unique<Lane>(device_, *engine_, record_, shapes, bundle_);
        }
        auto const total = static_cast<std::int64_t>(seeds.size());
        Array made(bundle_.type, lane_->made.shape);
        made.bytes.clear();
        for (std::int64_t start = 0; start < total; start += record_.largest)
            lane_->run(seeds, inputs, start, std::min(record_.largest, total - start), made.bytes);
        made.shape.insert(made.shape.begin(), total);
        return made;
    }

private:
    static constexpr char const* NOISE = "noise";  // what every graph calls its first input

    struct Buffer {
        bool input = false;
        Type type = Type::float32;
        Shape shape;  // of one sample
        std::size_t row = 0;  // bytes of one sample
        unsigned char* host = nullptr;
        void* device = nullptr;
    };

    // What inputs of one size need: an execution context, a stream, and buffers of the engine's largest batch.
    struct Lane {
        Device const& device;
        EngineRecord const& record;
        std::map<std::string, Shape> const shapes;  // of the inputs, one sample's
        Memory memory;
        std::unique_ptr<nvinfer1::IExecutionContext> context;  // freed before its buffers
        void* stream;
        std::map<std::string, Buffer> buffers;
        Buffer made;  // the one of `buffers` that is asked for
        std::int64_t rows = 0;

        Lane(Device const& device, nvinfer1::ICudaEngine& engine, EngineRecord const& record,
             std::map<std::string, Shape> const& shapes, Bundle const& bundle)
            : device(device), record(record), shapes(shapes), memory(device), context(engine.createExecutionContext()) {
            if (!context) fail("the engine library made no execution context: is there enough device memory?");
            stream = memory.stream();
            for (int index = 0; index < engine.getNbIOTensors(); ++index) {
                std::string const name = engine.getIOTensorName(index);
                Buffer& buffer = buffers[name];
                buffer.input = engine.getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
                buffer.type = type_of_tensor(engine, name);
                if (buffer.input && !shapes.count(name)) fail("the engine takes ", name, ", which the manifest lacks");
            }
            for (auto const& [name, shape] : shapes) {
                auto const found = buffers.find(name);
                if (found == buffers.end() || !found->second.input) fail("the engine takes no ", name);
                found->second.shape = shape;
                Type type = Type::float32;
                for (auto const& [known, condition] : bundle.conditions)
                    if (known == name) type = condition.type;
                Type const takes = found->second.type;
                if (takes != type)
                    fail("the engine takes ", name, " as ", name_of(takes), ", and the manifest says ", name_of(type));
            }
            resize(record.largest);
            for (auto& [name, buffer] : buffers) {
                nvinfer1::Dims const dims = context->getTensorShape(name.c_str());
                bool const open = std::any_of(dims.d, dims.d + std::max(dims.nbDims, 0), [](auto d) { return d < 0; });
                if (dims.nbDims < 1 || dims.d[0] != record.largest || open)
                    fail("the engine's ", name, " has no shape that its inputs tell");
                buffer.shape.assign(dims.d + 1, dims.d + dims.nbDims);
                buffer.row = count_of(buffer.shape) * size_of(buffer.type);
                std::size_t const size = buffer.row * static_cast<std::size_t>(record.largest);
                buffer.host = static_cast<unsigned char*>(memory.pinned(size));
                buffer.device = memory.on_device(size);
                if (!context->setTensorAddress(name.c_str(), buffer.device))
                    fail("the engine refuses memory for ", name);
            }
            if (!buffers.count(bundle.output) || buffers[bundle.output].input)
                fail("the engine makes no ", bundle.output);
            made = buffers[bundle.output];
            if (made.type != bundle.type)
                fail("the engine makes ", name_of(made.type), ", and the manifest says ", name_of(bundle.type));
        }

        // Samples `start` to `start + count`, the last repeated up to the engine's least batch.
        void run(std::vector<std::uint64_t> const& seeds, Inputs const& inputs, std::int64_t start, std::int64_t count,
                 Bytes& out) {
            resize(std::max(count, record.least));
            for (auto const& [name, shape] : shapes) {
                Buffer const& buffer = buffers[name];
                for (std::int64_t row = 0; row < rows; ++row) {
                    auto const from = static_cast<std::size_t>(start + std::min(row, count - 1));
                    unsigned char* const to = buffer.host + bytes(buffer, row);
                    if (name == NOISE) inputs.make_noise(seeds[from], reinterpret_cast<float*>(to));
                    else std::memcpy(to, inputs.conditions.at(name).bytes.data() + from * buffer.row, buffer.row);
                }
                int const code = device.to_device(buffer.device, buffer.host, bytes(buffer, rows), stream);
                device.check(code, "cuMemcpyHtoDAsync_v2");
            }
            if (!context->enqueueV3(static_cast<cudaStream_t>(stream)))
                fail("the engine library could not run the engine: is there enough device memory?");
            device.check(device.to_host(made.host, made.device, bytes(made, rows), stream), "cuMemcpyDtoHAsync_v2");
            device.check(device.synchronize(stream), "cuStreamSynchronize");
            out.insert(out.end(), made.host, made.host + bytes(made, count));
        }

        static std::size_t bytes(Buffer const& buffer, std::int64_t rows) {
            return buffer.row * static_cast<std::size_t>(rows);
        }

        void resize(std::int64_t to) {
            if (rows == to) return;
            rows = 0;
            for (auto const& [name, shape] : shapes) {
                nvinfer1::Dims dims{};
                dims.nbDims = static_cast<std::int32_t>(shape.size()) + 1;
                if (dims.nbDims > nvinfer1::Dims::MAX_DIMS) fail(name, " has more axes than TensorRT takes");
                dims.d[0] = to;
                std::copy(shape.begin(), shape.end(), dims.d + 1);
                Shape const all(dims.d, dims.d + dims.nbDims);
                if (!context->setInputShape(name.c_str(), dims))
                    fail(name, " [", joined(all), "] is beyond what the engine was built for");
            }
            rows = to;
        }

        static Type type_of_tensor(nvinfer1::ICudaEngine const& engine, std::string const& name) {
            switch (engine.getTensorDataType(name.c_str())) {
                case nvinfer1::DataType::kFLOAT: return Type::float32;
                case nvinfer1::DataType::kINT64: return Type::int64;
                case nvinfer1::DataType::kBOOL: return Type::boolean;
                case nvinfer1::DataType::kUINT8: return Type::uint8;
                default: fail("the engine's ", name, " is none of float32, int64, bool and uint8");
            }
        }
    };

    Bundle bundle_;
    Device device_;
    EngineRecord record_;
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<Lane> lane_;
};

#endif  // EDGE_SAMPLER_WITHOUT_TENSORRT

}  // namespace edge_sampler
