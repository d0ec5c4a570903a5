/* One Sampler used again and again, for tests/runtime/test_cpp_conditions.py: sizes that change, a refusal in between,
 * another thread, and its end on a third. Each result is a file of the folder that is given; last it says what is left.
 */
#include "edge_sampler.hpp"

#include <iostream>
#include <thread>

using namespace edge_sampler;

int main(int, char** values) {
    auto sampler = std::make_unique<Sampler>(open_bundle(values[1]));
    auto const sample = [&](std::string const& name, std::vector<std::uint64_t> const& seeds, std::string const& goal) {
        Conditions const conditions{
            {"goal", Given::parse(goal)}, {"still", Given::parse("false")}, {"joint", Given::parse("1,2")}};
        Bytes const content = npy(sampler->sample(seeds, conditions));
        std::ofstream(std::filesystem::path(values[2]) / name, std::ios::binary)
            .write(reinterpret_cast<char const*>(content.data()), static_cast<std::streamsize>(content.size()));
    };
    sample("0.npy", {0, 1, 2}, "1,2,3");
    sample("1.npy", {5}, "1,2,3,4,5");
    try {
        sample("none.npy", {5}, "1");
    } catch (Error const& error) {
        std::cout << error.what() << '\n';
    }
    std::thread([&] { sample("2.npy", {7, 8}, "3,2,1"); }).join();
    std::thread([&] { sampler.reset(); }).join();
    auto const live = reinterpret_cast<int (*)()>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), "fake_live"));
    std::cout << live() << " live\n";
}
