// Makes samples with a bundle's TensorRT engine, without Python. In a checkout, with TensorRT's headers, which include
// CUDA's cuda_runtime_api.h; TensorRT-RTX's library is -ltensorrt_rtx:
//
//     g++ -std=c++17 -O2 -I/usr/local/cuda/include runtime/cpp/sample.cpp -lnvinfer -ldl -o sample
//     ./sample BUNDLE --seeds 0-15 --out images.npy --out sheet.ppm
//     ./sample BUNDLE --condition class_labels=7 --condition observation=FILE.npy --out made.npy --force
//
// Exit status: 0; 1 where what is made holds NaN or infinity; 2, and one line, for anything else that is wrong.
#include "edge_sampler.hpp"

#include <iostream>

namespace {

namespace fs = std::filesystem;
using namespace edge_sampler;

char const* const USAGE =
    "usage: sample BUNDLE --out FILE.npy|FILE.ppm … [--seeds 0-15] [--condition NAME=NUMBERS|FILE.npy] … [--force]";
constexpr std::size_t MOST_SEEDS = 1000000;

struct Arguments {
    fs::path bundle;
    std::vector<std::uint64_t> seeds;
    Conditions conditions;
    std::vector<fs::path> out;
    bool force = false;
};

std::uint64_t seed_of(std::string const& text) {
    if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos)
        fail("'", text, "' is no seed; seeds are whole numbers such as 0-63 or 1,5,9");
    errno = 0;
    std::uint64_t const seed = std::strtoull(text.c_str(), nullptr, 10);
    if (errno) fail("seed ", text, " is out of range; seeds are 0 to 9223372036854775807");
    check_seed(seed);
    return seed;
}

// "0-63", "1,5,9", or both.
std::vector<std::uint64_t> seeds_of(std::string const& text) {
    std::vector<std::uint64_t> seeds;
    std::istringstream parts(text + ",");
    for (std::string part; std::getline(parts, part, ',');) {
        std::size_t const dash = part.find('-', 1);
        std::uint64_t const first = seed_of(part.substr(0, dash));
        std::uint64_t const last = dash == std::string::npos ? first : seed_of(part.substr(dash + 1));
        if (last < first) fail("seeds ", part, " run backwards");
        if (last - first >= MOST_SEEDS - seeds.size()) fail("seeds ", text, " are more than ", MOST_SEEDS);
        for (std::uint64_t seed = first; seed <= last; ++seed) seeds.push_back(seed);
    }
    return seeds;
}

void add_condition(Conditions& conditions, std::string const& text) {
    std::size_t const equals = text.rfind('=');
    if (equals == std::string::npos || equals == 0) fail("--condition ", text, ": not NAME=NUMBERS or NAME=FILE.npy");
    std::string const name = text.substr(0, equals), value = text.substr(equals + 1);
    if (conditions.count(name)) fail(name, " is given twice: give it once");
    if (fs::path(value).extension() == ".npy") {
        conditions[name] = read_npy(value);
        return;
    }
    try {
        conditions[name] = Given::parse(value);
    } catch (Error const& error) {
        fail("--condition ", text, ": not NAME=NUMBERS or NAME=FILE.npy (", error.what(), ")");
    }
}

Arguments parse(std::vector<std::string> const& given) {
    Arguments arguments;
    std::string seeds = "0-15";
    for (std::size_t index = 0; index < given.size(); ++index) {
        std::string const& option = given[index];
        auto const value = [&]() -> std::string const& {
            if (index + 1 == given.size()) fail(option, " needs a value; ", USAGE);
            return given[++index];
        };
        if (option == "--seeds") seeds = value();
        else if (option == "--condition") add_condition(arguments.conditions, value());
        else if (option == "--out") arguments.out.emplace_back(value());
        else if (option == "--force") arguments.force = true;
        else if (option.rfind("--", 0) == 0) fail("unknown option ", option, "; ", USAGE);
        else if (arguments.bundle.empty()) arguments.bundle = option;
        else fail("one bundle is enough, and ", option, " is another; ", USAGE);
    }
    if (arguments.bundle.empty() || arguments.out.empty()) fail(USAGE);
    for (fs::path const& out : arguments.out) {
        if (out.extension() != ".npy" && out.extension() != ".ppm")
            fail("--out ", out.string(), ": unknown format; allowed: .npy, .ppm");
        if (fs::exists(out) && !(arguments.force && fs::is_regular_file(out)))
            fail(out.string(), " exists; choose another with --out, or add --force");
    }
    arguments.seeds = seeds_of(seeds);
    return arguments;
}

// One picture of all samples, float32 [n, C, H, W] in [-1, 1] or uint8 [n, H, W, C], as `runtime sample` draws it: as
// square as can be, small ones enlarged, up to 64 pixels. Binary PPM, three bytes a pixel.
Bytes sheet(Array const& made) {
    bool const floats = made.type == Type::float32;
    if (made.shape.size() != 4) fail("it makes no pictures: write them with --out FILE.npy");
    auto const size = [&](std::size_t axis) { return static_cast<std::size_t>(made.shape[axis]); };
    std::size_t const count = size(0), height = size(floats ? 2 : 1), width = size(floats ? 3 : 2);
    std::size_t const channels = size(floats ? 1 : 3), scale = std::max<std::size_t>(1, 64 / height), gap = 2;
    if (channels != 1 && channels != 3) fail("it makes no pictures: write them with --out FILE.npy");
    std::size_t columns = 1;
    while (columns * columns < count) ++columns;
    std::size_t const rows = (count + columns - 1) / columns;
    std::size_t const across = columns * (width * scale + gap) + gap, down = rows * (height * scale + gap) + gap;
    std::string const header = "P6\n" + std::to_string(across) + " " + std::to_string(down) + "\n255\n";
    Bytes picture(header.begin(), header.end());
    picture.resize(header.size() + across * down * 3, 255);
    auto const pixel = [&](std::size_t n, std::size_t c, std::size_t y, std::size_t x) {
        if (!floats) return made.bytes[((n * height + y) * width + x) * channels + c];
        float const value = made.data<float>()[((n * channels + c) * height + y) * width + x];
        return static_cast<unsigned char>(std::clamp(std::nearbyint(value * 127.5f + 127.5f), 0.0f, 255.0f));
    };
    for (std::size_t n = 0; n < count; ++n)
        for (std::size_t y = 0; y < height * scale; ++y)
            for (std::size_t x = 0; x < width * scale; ++x)
                for (std::size_t c = 0; c < 3; ++c) {
                    std::size_t const top = gap + n / columns * (height * scale + gap);
                    std::size_t const left = gap + n % columns * (width * scale + gap);
                    picture[header.size() + ((top + y) * across + left + x) * 3 + c] =
                        pixel(n, channels == 1 ? 0 : c, y / scale, x / scale);
                }
    return picture;
}

// The file is whole or not there: it is written under another name first.
void write(fs::path const& path, Bytes const& content) {
    fs::path temporary = path;
    temporary.replace_filename("." + path.filename().string() + "." + std::to_string(std::random_device()()) + ".new");
    std::ofstream file(temporary, std::ios::binary);
    file.write(reinterpret_cast<char const*>(content.data()), static_cast<std::streamsize>(content.size()));
    file.close();
    std::error_code code;
    if (file) fs::rename(temporary, path, code);
    if (file && !code) return;
    std::error_code none;
    fs::remove(temporary, none);
    fail("cannot write ", path.string(), ": ", code ? code.message() : std::strerror(errno));
}

int run(std::vector<std::string> const& given) {
    Arguments const arguments = parse(given);
    Bundle const bundle = open_bundle(arguments.bundle);
    inputs_of(bundle, arguments.seeds, arguments.conditions);  // what is wrong is told before an engine is loaded
    Sampler sampler(bundle);
    if (bundle.random_weights)
        std::cerr << "note: this bundle has random weights; what it makes means nothing\n";
    Array const made = sampler.sample(arguments.seeds, arguments.conditions);
    for (std::size_t index = 0; made.type == Type::float32 && index < made.bytes.size() / 4; ++index)
        if (!std::isfinite(made.data<float>()[index])) {
            std::cerr << "error: the " << bundle.output << " hold NaN or infinity\n";
            return 1;
        }
    std::vector<Bytes> files;  // all of them, before the first is written
    for (fs::path const& out : arguments.out) files.push_back(out.extension() == ".npy" ? npy(made) : sheet(made));
    for (std::size_t index = 0; index < files.size(); ++index) {
        write(arguments.out[index], files[index]);
        std::cout << arguments.out[index].string() << ": " << arguments.seeds.size() << ' ' << bundle.output << ", by "
                  << sampler.description() << '\n';
    }
    return 0;
}

}  // namespace

int main(int count, char** values) {
    try {
        return run(std::vector<std::string>(values + 1, values + count));
    } catch (std::exception const& error) {
        std::string line = error.what();
        std::replace(line.begin(), line.end(), '\n', ' ');
        std::cerr << "error: " << line << '\n';
        return 2;
    }
}
