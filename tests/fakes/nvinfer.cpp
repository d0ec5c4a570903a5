/* A TensorRT 11.0.0.12 without a GPU, for tests of runtime/cpp: its plans are ONNX graphs, which a Python process
 * (nvinfer_child.py, by $FAKE_NVINFER_PYTHON) runs on the fake driver's memory. $FAKE_NVINFER_SPOIL names what shall be
 * refused, $FAKE_NVINFER_BATCH is the profile's batch, as 1:4. At the end of the program it complains, with status 99,
 * of whatever was not freed.
 */
#include "NvInfer.h"

#include <dlfcn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

int live = 0;  // objects of this library

struct Counted {
    Counted() { ++live; }
    ~Counted() { --live; }
};

struct AtTheEnd {
    ~AtTheEnd() {
        void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
        auto const count = driver ? reinterpret_cast<int (*)()>(dlsym(driver, "fake_live")) : nullptr;
        int const left = live + (count ? count() : 0);
        if (left == 0) return;
        std::fprintf(stderr, "%d objects were not freed\n", left);
        _exit(99);
    }
} const at_the_end;

bool spoilt(char const* what) {
    char const* const named = std::getenv("FAKE_NVINFER_SPOIL");
    return named && std::strcmp(named, what) == 0;
}

/* A call of the driver, named as what shall be refused, finds no memory from now on. */
void spoil_driver() {
    char const* const named = std::getenv("FAKE_NVINFER_SPOIL");
    if (!named || std::strncmp(named, "cu", 2) != 0) return;
    void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    reinterpret_cast<void (*)(char const*, int, int)>(dlsym(driver, "fake_fail"))(named, 0, 2);
}

struct Tensor {
    std::string name;
    TensorIOMode mode;
    DataType type;
    std::vector<std::string> axes;  // each a number or a name
};

std::size_t size_of(DataType type) { return type == DataType::kINT64 ? 8 : type == DataType::kFLOAT ? 4 : 1; }

std::size_t bytes(Dims const& dims, DataType type) {
    std::size_t size = size_of(type);
    for (int axis = 0; axis < dims.nbDims; ++axis) size *= static_cast<std::size_t>(dims.d[axis]);
    return size;
}

/* The process that has ONNX Runtime: numbers and names are lines, arrays are bytes. */
class Child {
public:
    Child() {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) std::abort();
        process_ = fork();
        if (process_ == 0) {
            dup2(ends[1], 0), dup2(ends[1], 1);
            close(ends[0]), close(ends[1]);
            char const* const python = std::getenv("FAKE_NVINFER_PYTHON");
            execl(python, python, FAKE_NVINFER_CHILD, static_cast<char*>(nullptr));
            _exit(127);
        }
        close(ends[1]);
        to_ = fdopen(ends[0], "wb"), from_ = fdopen(dup(ends[0]), "rb");
    }
    ~Child() {
        fclose(to_), fclose(from_);
        waitpid(process_, nullptr, 0);
    }
    void say(std::string const& line) { std::fprintf(to_, "%s\n", line.c_str()); }
    void send(void const* data, std::size_t size) { std::fwrite(data, 1, size, to_); }
    void receive(void* data, std::size_t size) {
        std::fflush(to_);
        if (std::fread(data, 1, size, from_) != size) std::abort();
    }
    std::string line() {
        std::fflush(to_);
        std::string text;
        for (int c = std::fgetc(from_); c != '\n' && c != EOF; c = std::fgetc(from_)) text += static_cast<char>(c);
        return text;
    }

private:
    pid_t process_;
    FILE *to_, *from_;
};

class Engine : public ICudaEngine, Counted {
public:
    Engine(void const* plan, std::size_t size) {
        child.say(std::to_string(size));
        child.send(plan, size);
        static std::map<std::string, DataType> const types{{"float32", DataType::kFLOAT}, {"int64", DataType::kINT64},
                                                           {"bool", DataType::kBOOL}, {"uint8", DataType::kUINT8}};
        std::size_t const count = std::stoul(child.line());
        while (tensors.size() < count) {
            Tensor tensor{child.line(), child.line() == "input" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT,
                          types.at(child.line()), {}};
            for (std::size_t rank = std::stoul(child.line()); rank > 0; --rank) tensor.axes.push_back(child.line());
            tensors.push_back(tensor);
        }
    }
    Tensor const& tensor(std::string const& name) const {
        for (Tensor const& known : tensors)
            if (known.name == name) return known;
        std::abort();
    }
    std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(tensors.size()); }
    char const* getIOTensorName(std::int32_t index) const noexcept override {
        return tensors.at(static_cast<std::size_t>(index)).name.c_str();
    }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override { return tensor(name).mode; }
    DataType getTensorDataType(char const* name) const noexcept override { return tensor(name).type; }
    Dims getTensorShape(char const* name) const noexcept override { return dims(tensor(name), {}); }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override;

    /* -1 is of an axis whose name has no size yet. */
    Dims dims(Tensor const& of, std::map<std::string, std::int64_t> const& sizes) const {
        Dims dims{static_cast<std::int32_t>(of.axes.size()), {}};
        for (std::size_t axis = 0; axis < of.axes.size(); ++axis) {
            std::string const& text = of.axes[axis];
            auto const found = sizes.find(text);
            bool const number = text.find_first_not_of("0123456789") == std::string::npos;
            dims.d[axis] = number ? std::stoll(text) : found == sizes.end() ? -1 : found->second;
        }
        return dims;
    }

    Child child;
    std::vector<Tensor> tensors;
};

class Context : public IExecutionContext, Counted {
public:
    explicit Context(Engine& engine) : engine_(engine) {}
    bool setInputShape(char const* name, Dims const& given) noexcept override {
        Tensor const& of = engine_.tensor(name);
        if (spoilt("shape") || given.nbDims != static_cast<std::int32_t>(of.axes.size())) return false;
        for (std::size_t axis = 0; axis < of.axes.size(); ++axis) {
            std::string const& text = of.axes[axis];
            if (text.find_first_not_of("0123456789") != std::string::npos) sizes_[text] = given.d[axis];
            else if (std::stoll(text) != given.d[axis]) return false;
        }
        std::int64_t least = 1, largest = given.d[0]; /* of the profile's batch */
        if (char const* const batch = std::getenv("FAKE_NVINFER_BATCH"))
            if (std::sscanf(batch, "%" SCNd64 ":%" SCNd64, &least, &largest) != 2) std::abort();
        if (given.d[0] < least || given.d[0] > largest) return false;
        return shapes_[name] = given, true;
    }
    Dims getTensorShape(char const* name) const noexcept override { return engine_.dims(engine_.tensor(name), sizes_); }
    bool setTensorAddress(char const* name, void* data) noexcept override { return addresses_[name] = data, true; }
    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (!stream || spoilt("execute")) return false;
        for (Tensor const& tensor : engine_.tensors) {
            if (tensor.mode != TensorIOMode::kINPUT) continue;
            Dims const shape = shapes_.at(tensor.name);
            engine_.child.say(tensor.name);
            for (int axis = 0; axis < shape.nbDims; ++axis) engine_.child.say(std::to_string(shape.d[axis]));
            engine_.child.send(addresses_.at(tensor.name), bytes(shape, tensor.type));
        }
        for (Tensor const& tensor : engine_.tensors)
            if (tensor.mode == TensorIOMode::kOUTPUT)
                engine_.child.receive(addresses_.at(tensor.name), bytes(engine_.dims(tensor, sizes_), tensor.type));
        return true;
    }

private:
    Engine& engine_;
    std::map<std::string, Dims> shapes_;
    std::map<std::string, std::int64_t> sizes_;
    std::map<std::string, void*> addresses_;
};

IExecutionContext* Engine::createExecutionContext(ExecutionContextAllocationStrategy) noexcept {
    return spoilt("context") ? nullptr : new Context(*this);
}

class Runtime : public IRuntime, Counted {
public:
    explicit Runtime(ILogger& logger) : logger_(logger) {}
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        std::fprintf(stderr, "deserialize\n");
        spoil_driver();
        if (!host_code_ && !spoilt("deserialize")) return new Engine(blob, size);
        logger_.log(ILogger::Severity::kERROR, "the plan is\nof another kind");
        logger_.log(ILogger::Severity::kINFO, "nothing else");
        return nullptr;
    }
    void setEngineHostCodeAllowed(bool allowed) noexcept override { host_code_ = allowed; }
    bool getEngineHostCodeAllowed() const noexcept override { return host_code_; }

private:
    ILogger& logger_;
    bool host_code_ = false;
};

}  // namespace

std::int32_t getInferLibMajorVersion() noexcept { return 11; }
std::int32_t getInferLibMinorVersion() noexcept { return 0; }
std::int32_t getInferLibPatchVersion() noexcept { return 0; }
std::int32_t getInferLibBuildVersion() noexcept { return 12; }
void* createInferRuntime_INTERNAL(void* logger, std::int32_t) noexcept {
    return static_cast<IRuntime*>(new Runtime(*static_cast<ILogger*>(logger)));
}
