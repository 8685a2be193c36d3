// A CUDA device made of host memory, for a PyTorch that was built without CUDA.
//
// Such a PyTorch has everything of CUDA except its kernels: the device type, the dispatch key, autograd and autocast. This library adds
// an allocator, a device guard, a generator, and one kernel for every operation: it runs the CPU's kernel on the same bytes.
// What CUDA refuses is refused with CUDA's words. Every kernel launch and every wait of the host is reported to a listener.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/SDPBackend.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <iterator>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::Device;
using c10::DispatchKey;
using c10::IValue;
using c10::Storage;

const Device CUDA0(c10::DeviceType::CUDA, 0);
const Device HOST(c10::DeviceType::CPU);

// ------------------------------------------------------------------------------------------------------------- events

enum Event { LAUNCH = 1, WAIT = 2 };
using Listener = void (*)(const char* operation, int event);
std::atomic<Listener> listener{nullptr};

void report(const char* operation, int event) {
  if (Listener to = listener.load()) {
    to(operation, event);
  }
}

// ------------------------------------------------------------------------------------------------------------- memory

std::atomic<int64_t> held{0}, peak{0};

// Keeps the bytes of a device storage alive: its own bytes, or those of a host storage that an operation returned.
struct Block {
  c10::DataPtr own;
  Storage adopted;
  int64_t bytes;
};

c10::DataPtr device_pointer(void* data, Block* block) {
  int64_t now = held += block->bytes;
  int64_t before = peak.load();
  while (now > before && !peak.compare_exchange_weak(before, now)) {
  }
  auto release = [](void* context) {
    auto* block = static_cast<Block*>(context);
    held -= block->bytes;
    delete block;
  };
  return {data, block, release, CUDA0};
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto own = c10::GetCPUAllocator()->allocate(bytes);
    void* data = own.get();
    return device_pointer(data, new Block{std::move(own), {}, static_cast<int64_t>(bytes)});
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
DeviceAllocator allocator;

c10::DataPtr adopted(const Storage& host) {
  void* data = host.unsafeGetStorageImpl()->mutable_data();
  return device_pointer(data, new Block{{}, host, static_cast<int64_t>(host.nbytes())});
}

// ------------------------------------------------------------------------------------------------------------- device, generator

void check_index(Device device) {
  TORCH_CHECK(device.index() <= 0, "CUDA error: invalid device ordinal");
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, CUDA0); }
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  Device exchangeDevice(Device device) const override {
    check_index(device);
    return CUDA0;
  }
  Device getDevice() const override { return CUDA0; }
  void setDevice(Device device) const override { check_index(device); }
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device) const override { return stream(); }
  c10::Stream getDefaultStream(Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
};

struct DeviceGenerator final : c10::GeneratorImpl {
  at::Generator host;
  explicit DeviceGenerator(at::Generator inner)
      : GeneratorImpl(CUDA0, c10::DispatchKeySet(DispatchKey::CUDA)), host(std::move(inner)) {}
  static c10::DeviceType device_type() { return c10::DeviceType::CUDA; }
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(host.clone()); }
};

at::Generator new_generator() {
  return at::make_generator<DeviceGenerator>(at::detail::createCPUGenerator());
}

const at::Generator& default_generator() {
  static at::Generator one = new_generator();
  return one;
}

at::Generator host_generator(const at::Generator& generator) {
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->host;
}

struct Hooks : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    static std::atomic<bool> first{true};  // Python asks for the default generator first
    return first.exchange(false) ? default_generator() : new_generator();
  }
  Device getDeviceFromPtr(void*) const override { return CUDA0; }
  bool isPinnedPtr(const void*) const override { return false; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
  int getNumGPUs() const override { return 1; }
  std::string showConfig() const override { return "emulated"; }
  void deviceSynchronize(c10::DeviceIndex) const override { report("cudaDeviceSynchronize", WAIT); }
};

// ------------------------------------------------------------------------------------------------------------- host views

// A tensor of the same shape on another storage: the device's view of host bytes, or the host's view of device bytes.
Tensor dressed(Storage storage, DispatchKey key, const Tensor& like) {
  Tensor made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  auto* implementation = made.unsafeGetTensorImpl();
  implementation->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  made._set_conj(like.is_conj());
  made._set_neg(like.is_neg());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) implementation->set_wrapped_number(true);
  return made;
}

// The views of one call. Tensors that share a storage share one view of it, so that results that alias an argument still do.
struct Views {
  std::unordered_map<c10::StorageImpl*, Storage> host, device;

  Tensor to_host(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    auto found = host.find(storage);
    if (found == host.end()) {
      void* data = storage->mutable_data();
      c10::DataPtr borrowed(data, data, &c10::detail::deleteNothing, HOST);
      Storage view(Storage::use_byte_size_t(), storage->nbytes(), std::move(borrowed), c10::GetCPUAllocator(), true);
      device.emplace(view.unsafeGetStorageImpl(), tensor.storage());
      found = host.emplace(storage, std::move(view)).first;
    }
    return dressed(found->second, DispatchKey::CPU, tensor);
  }

  Tensor to_device(const Tensor& tensor) {
    if (!tensor.defined() || tensor.is_cuda()) return tensor;
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    auto found = device.find(storage);
    if (found == device.end()) {
      Storage made(Storage::use_byte_size_t(), tensor.storage().nbytes(), adopted(tensor.storage()), &allocator, true);
      found = device.emplace(storage, std::move(made)).first;
    }
    return dressed(found->second, DispatchKey::CUDA, tensor);
  }

  // Give a written argument the shape and the memory that the operation gave its host view.
  static void settle(const Tensor& argument, const Tensor& view) {
    if (!argument.defined() || !argument.is_cuda()) return;
    auto* mine = argument.storage().unsafeGetStorageImpl();
    Storage theirs = view.storage();
    if (theirs.unsafeGetStorageImpl()->mutable_data() != mine->mutable_data()) {
      mine->set_nbytes(theirs.nbytes());
      mine->set_data_ptr_noswap(adopted(theirs));
    }
    if (argument.sizes() != view.sizes() || argument.strides() != view.strides() ||
        argument.storage_offset() != view.storage_offset()) {
      argument.unsafeGetTensorImpl()->set_sizes_and_strides(view.sizes(), view.strides(), view.storage_offset());
    }
  }
};

template <typename F>
IValue mapped(const IValue& value, F&& f) {
  if (value.isTensor()) return f(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(f(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const auto& tensor : value.toOptionalTensorVector()) {
      list.push_back(tensor.has_value() ? std::optional<Tensor>(f(*tensor)) : std::nullopt);
    }
    return list;
  }
  return value;
}

template <typename F>
void for_each_tensor(const IValue& value, F&& f) {
  mapped(value, [&](const Tensor& tensor) {
    if (tensor.defined()) f(tensor);
    return tensor;
  });
}

// ------------------------------------------------------------------------------------------------------------- refusals, reports

std::unordered_set<std::string> unchecked;  // operations whose generated code does not compare the devices of arguments
const std::unordered_set<std::string> PRODUCTS = {"aten::mm",     "aten::addmm", "aten::bmm", "aten::baddbmm",
                                                  "aten::addmv",  "aten::mv",    "aten::dot", "aten::addbmm"};

std::string full_name(const c10::FunctionSchema& schema) {
  return schema.overload_name().empty() ? schema.name() : schema.name() + "." + schema.overload_name();
}

bool starts_with(const std::string& text, const char* start) {
  return text.rfind(start, 0) == 0;
}

// CUDA takes a number or an index from the host where its kernels do; every other host tensor beside a device tensor is an error.
void check_devices(const c10::FunctionSchema& schema, const std::string& name, const std::vector<IValue>& args) {
  bool on_device = false;
  for (const auto& arg : args) {
    for_each_tensor(arg, [&](const Tensor& tensor) { on_device |= tensor.is_cuda(); });
  }
  if (!on_device) return;
  bool loose = unchecked.count(name) > 0;
  bool indexes = starts_with(name, "aten::index") || starts_with(name, "aten::_index_put_impl_");
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& argument = schema.arguments()[i].name();
    for_each_tensor(args[i], [&](const Tensor& tensor) {
      if (tensor.is_cuda() || (loose && (tensor.dim() == 0 || (indexes && argument == "indices")))) return;
      TORCH_CHECK(loose, "Expected all tensors to be on the same device, but got ", argument, " is on ", tensor.device(),
                  ", different from other tensors on cuda:0 (when checking argument in method wrapper_CUDA_",
                  schema.name().substr(6), ")");
      TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and ",
                  tensor.device(), "! (", name, ", argument ", argument, ")");
    });
  }
}

bool is_mask(const Tensor& index) {
  return index.scalar_type() == at::kBool || index.scalar_type() == at::kByte;
}

// x[mask] = values counts the mask, x[host index] = values copies the index; x[mask] = number is a masked_fill and does neither.
void report_index_put(const std::vector<IValue>& args) {
  std::vector<Tensor> indices;
  for (const auto& index : args[1].toOptionalTensorVector()) {
    if (index.has_value() && index->defined()) indices.push_back(*index);
  }
  const Tensor& values = args[2].toTensor();
  bool number = values.numel() == 1 && values.is_cpu();
  if (number && indices.size() == 1 && is_mask(indices[0]) && !args[3].toBool()) return;
  for (const Tensor& index : indices) {
    if (index.is_cpu()) report("aten::_index_put_impl_ (index from the host)", WAIT);
    else if (is_mask(index)) report("aten::_index_put_impl_ (mask)", LAUNCH | WAIT);
  }
  if (number && values.dim() == 0) report("aten::_index_put_impl_ (value from the host)", WAIT);
}

void report_operation(const c10::OperatorHandle& op, const std::string& name, const std::vector<IValue>& args) {
  const std::string& base = op.schema().name();
  if (base == "aten::is_set_to") return;
  if (base == "aten::_index_put_impl_") report_index_put(args);
  bool waits = op.hasTag(at::Tag::dynamic_output_shape) || op.hasTag(at::Tag::data_dependent_output) ||
      base == "aten::multinomial";
  if (name == "aten::repeat_interleave.Tensor" && !args[1].isNone()) waits = false;  // its size is given
  if (base == "aten::index") waits = false;  // its masks were made positions, and reported, before
  report(name.c_str(), (base == "aten::_local_scalar_dense" ? 0 : LAUNCH) | (waits ? WAIT : 0));
}

// ------------------------------------------------------------------------------------------------------------- every operation

std::vector<IValue> host_arguments(const c10::FunctionSchema& schema, const std::vector<IValue>& args, Views& views) {
  std::vector<IValue> host;
  for (size_t i = 0; i < args.size(); ++i) {
    const IValue& arg = args[i];
    if (arg.isDevice() && arg.toDevice().is_cuda()) {
      host.emplace_back(HOST);
    } else if (arg.isGenerator()) {
      TORCH_CHECK(arg.toGenerator().device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
      host.emplace_back(host_generator(arg.toGenerator()));
    } else if (arg.isNone() && schema.arguments()[i].name() == "generator") {
      host.emplace_back(host_generator(default_generator()));
    } else {
      host.push_back(mapped(arg, [&](const Tensor& tensor) { return views.to_host(tensor); }));
    }
  }
  return host;
}

// The argument that a result is, by the schema; none where the result is new or a view.
const IValue* written_argument(const c10::FunctionSchema& schema, size_t result, const std::vector<IValue>& args) {
  const auto* alias = schema.returns()[result].alias_info();
  if (alias == nullptr || !alias->isWrite()) return nullptr;
  for (size_t i = 0; i < args.size(); ++i) {
    const auto* of = schema.arguments()[i].alias_info();
    if (of != nullptr && of->isWrite() && of->beforeSets() == alias->beforeSets()) return &args[i];
  }
  return nullptr;
}

void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = full_name(schema);
  const size_t count = schema.arguments().size(), results = schema.returns().size();
  const std::vector<IValue> args(stack->end() - count, stack->end());
  if (!starts_with(name, "aten::_foreach") && !starts_with(name, "aten::_fused")) check_devices(schema, name, args);
  if (PRODUCTS.count(schema.name())) {
    auto type = args[0].toTensor().scalar_type();
    TORCH_CHECK(!c10::isIntegralType(type, true), "\"", schema.name().substr(6), "_cuda\" not implemented for '", type, "'");
  }
  report_operation(op, name, args);

  Views views;
  const std::vector<IValue> host = host_arguments(schema, args, views);
  stack->resize(stack->size() - count);
  stack->insert(stack->end(), host.begin(), host.end());
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);
  }
  for (size_t i = 0; i < count; ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias == nullptr || !alias->isWrite()) continue;
    std::vector<Tensor> mine, theirs;
    for_each_tensor(args[i], [&](const Tensor& tensor) { mine.push_back(tensor); });
    for_each_tensor(host[i], [&](const Tensor& tensor) { theirs.push_back(tensor); });
    for (size_t j = 0; j < mine.size(); ++j) Views::settle(mine[j], theirs[j]);
  }
  const std::vector<IValue> found(stack->end() - results, stack->end());
  stack->resize(stack->size() - results);
  for (size_t r = 0; r < results; ++r) {
    const IValue* same = written_argument(schema, r, args);
    stack->push_back(same ? *same : mapped(found[r], [&](const Tensor& tensor) { return views.to_device(tensor); }));
  }
}

// ------------------------------------------------------------------------------------------------------------- memory operations

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device> device,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  if (device.has_value()) check_index(*device);
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<Device> device, std::optional<bool>) {
  if (device.has_value()) check_index(*device);
  return at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}

Tensor as_strided(const Tensor& self, IntArrayRef size, IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

Tensor view(const Tensor& self, IntArrayRef size) {
  return at::native::view(self, size);
}

Tensor reshape_alias(const Tensor& self, IntArrayRef size, IntArrayRef stride) {
  return at::native::_reshape_alias(self, size, stride);
}

Tensor unfold(const Tensor& self, int64_t dimension, int64_t size, int64_t step) {
  return at::native::unfold(self, dimension, size, step);
}

const Tensor& resize_(const Tensor& self, IntArrayRef size, std::optional<at::MemoryFormat>) {
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, std::nullopt, true);
  return self;
}

Tensor& set_view(Tensor& self, Storage source, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  at::native::checkSetStorage(self, source, offset, size, stride);
  auto* implementation = self.unsafeGetTensorImpl();
  implementation->set_storage_offset(offset);
  at::native::resize_impl_cpu_(implementation, size, stride.data() ? at::OptionalIntArrayRef(stride) : std::nullopt, true);
  return self;
}

Tensor& set_storage(Tensor& self, Storage source) {
  int64_t length = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_view(self, std::move(source), 0, {length}, {});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  if (self.unsafeGetTensorImpl() == source.unsafeGetTensorImpl()) return self;
  return set_view(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  if (self.unsafeGetTensorImpl() == source.unsafeGetTensorImpl()) return self;
  if (self.numel() > 0) {
    if (self.is_cuda() && source.is_cuda()) report("aten::copy_", LAUNCH);
    else if (!non_blocking) report(self.is_cuda() ? "aten::copy_ (to the device)" : "aten::copy_ (to the host)", WAIT);
  }
  Views views;
  Tensor to = views.to_host(self);
  at::AutoDispatchBelowADInplaceOrView guard;
  to.copy_(views.to_host(source), false);
  return self;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& target) {
  const_cast<Tensor&>(target).resize_(self.sizes()).copy_(self);
  return target;
}

void record_stream(Tensor&, c10::Stream) {}

// ------------------------------------------------------------------------------------------------------------- attention

// One fused kernel (that of CUDA with a bias) wherever it applies, else plain attention: the CPU's choice too, to equal its bits.
int64_t attention_choice(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>&, double, bool,
                         std::optional<double>, bool) {
  bool dense = query.dim() == 4 && query.size(2) > 0 && key.size(2) > 0 && query.size(3) == value.size(3) &&
      query.stride(3) == 1 && key.stride(3) == 1 && value.stride(3) == 1;
  bool same_heads = dense && query.size(1) == key.size(1) && query.size(1) == value.size(1);
  auto type = query.scalar_type();
  bool known = type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
  return static_cast<int64_t>(same_heads && known ? at::SDPBackend::efficient_attention : at::SDPBackend::math);
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Four attention(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& bias, bool,
               double dropout, bool causal, std::optional<double> scale) {
  report("aten::_scaled_dot_product_efficient_attention", LAUNCH);
  Views views;
  at::AutoDispatchBelowADInplaceOrView guard;
  std::optional<Tensor> mask;
  if (bias.has_value()) mask = views.to_host(*bias);
  auto [out, log_total] = at::_scaled_dot_product_flash_attention_for_cpu(
      views.to_host(query), views.to_host(key), views.to_host(value), dropout, causal, mask, scale);
  Tensor seed = at::zeros({}, at::kLong);
  return {views.to_device(out), views.to_device(log_total), seed, seed.clone()};
}

Four attention_backward(const Tensor& gradient, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& bias,
                        const Tensor& out, const Tensor& log_total, const Tensor&, const Tensor&, double dropout,
                        std::array<bool, 4>, bool causal, std::optional<double> scale) {
  report("aten::_scaled_dot_product_efficient_attention_backward", LAUNCH);
  Views views;
  at::AutoDispatchBelowADInplaceOrView guard;
  std::optional<Tensor> mask;
  if (bias.defined()) mask = views.to_host(bias);
  auto [q, k, v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      views.to_host(gradient), views.to_host(query), views.to_host(key), views.to_host(value), views.to_host(out),
      views.to_host(log_total), dropout, causal, mask, scale);
  return {views.to_device(q), views.to_device(k), views.to_device(v), Tensor()};
}

// ------------------------------------------------------------------------------------------------------------- installation

std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

void install(const char* unchecked_names, const char* composite_names) {
  for (const auto& name : words(unchecked_names)) unchecked.insert("aten::" + name);
  const at::CUDAHooksInterface& hooks = at::detail::getCUDAHooks();
  if (!hooks.isBuilt()) {  // PyTorch asked before this library was loaded and keeps the answer, an object without members
    static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
    new (const_cast<at::CUDAHooksInterface*>(&hooks)) Hooks(at::CUDAHooksArgs());
  }
  static Guard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
  c10::SetAllocator(c10::DeviceType::CUDA, &allocator, 1);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&attention_choice);
  // Never deleted: a library that is deleted takes its kernels back.
  auto* all = new torch::Library(torch::Library::IMPL, "_", DispatchKey::CUDA, __FILE__, __LINE__);
  all->fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  auto* aten = new torch::Library(torch::Library::IMPL, "aten", DispatchKey::CUDA, __FILE__, __LINE__);
  aten->impl("empty.memory_format", &empty);
  aten->impl("empty_strided", &empty_strided);
  aten->impl("as_strided", &as_strided);
  aten->impl("view", &view);
  aten->impl("_reshape_alias", &reshape_alias);
  aten->impl("unfold", &unfold);
  aten->impl("resize_", &resize_);
  aten->impl("set_.source_Storage_storage_offset", &set_view);
  aten->impl("set_.source_Storage", &set_storage);
  aten->impl("set_.source_Tensor", &set_tensor);
  aten->impl("copy_", &copy_);
  aten->impl("_copy_from_and_resize", &copy_from_and_resize);
  aten->impl("record_stream", &record_stream);
  aten->impl("_scaled_dot_product_efficient_attention", &attention);
  aten->impl("_scaled_dot_product_efficient_attention_backward", &attention_backward);
  for (const auto& name : words(composite_names)) {
    aten->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  }
}

}  // namespace

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
}  // namespace at

extern "C" {

// Install the device for the rest of the process. Returns the error, or nullptr. Names of operations are separated by white space.
const char* emulated_cuda_install(const char* unchecked_names, const char* composite_names) {
  static std::string error;
  try {
    install(unchecked_names, composite_names);
    return nullptr;
  } catch (const std::exception& exception) {
    error = exception.what();
    return error.c_str();
  }
}

void emulated_cuda_listen(Listener to) { listener = to; }
int64_t emulated_cuda_held() { return held.load(); }
int64_t emulated_cuda_peak() { return peak.load(); }
void emulated_cuda_reset_peak() { peak = held.load(); }

}  // extern "C"
