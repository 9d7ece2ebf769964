# A Packer build with QEMU that ends in an image ct runs. docs/image-import.md explains it.
#
#     packer build -var base=debian-12-generic-amd64.qcow2 -var base_checksum=sha512:… -var name=builder image.pkr.hcl
#
# Packer 1.7 and later: `packer plugins install github.com/hashicorp/qemu` once.

variable "base" {
  description = "Disk to start from, a path or a URL: a generic cloud image of Debian or Ubuntu, with cloud-init."
  type        = string
}

variable "base_checksum" {
  description = "Checksum of that disk as its publisher has it, such as sha512:…"
  type        = string
}

variable "name" {
  description = "Name of the image in ct."
  type        = string
}

variable "accelerator" {
  description = "kvm, or tcg where there is no KVM."
  type        = string
  default     = "kvm"
}

source "qemu" "image" {
  iso_url          = var.base
  iso_checksum     = var.base_checksum
  disk_image       = true
  disk_size        = "8G"
  format           = "qcow2"
  accelerator      = var.accelerator
  memory           = 2048
  headless         = true
  output_directory = "output"
  vm_name          = "disk.qcow2"

  # cloud-init makes the account that Packer uses, from http/user-data. It is gone when the disk is done.
  http_directory = "${path.root}/http"
  qemuargs       = [["-smbios", "type=1,serial=ds=nocloud-net;s=http://{{ .HTTPIP }}:{{ .HTTPPort }}/"]]
  ssh_username   = "packer"
  ssh_password   = "packer"
  ssh_timeout    = "10m"

  # An orderly end: a file system with a journal that was not written back is not imported.
  shutdown_command = "sudo sh -c 'userdel --force --remove packer; rm -f /etc/sudoers.d/90-cloud-init-users; poweroff'"
}

build {
  sources = ["source.qemu.image"]

  # What the image is for goes here.
  provisioner "shell" {
    inline = [
      "cloud-init status --wait",
      "sudo apt-get update",
      "sudo DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends build-essential",
      "sudo apt-get clean",
      "sudo rm -rf /var/lib/apt/lists/*",
    ]
  }

  # su, mount and passwd are set-uid in every Debian; in a VM of ct that is without effect.
  post-processor "shell-local" {
    inline = ["ct image import qcow2:output/disk.qcow2 --name ${var.name} --allow-setuid"]
  }
}
