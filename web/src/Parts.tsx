/** Small pieces that every page uses. */

import { ActionIcon, Alert, Box, CopyButton, Group, Skeleton, Stack, Text, Title, Tooltip } from '@mantine/core'
import { IconAlertCircle, IconCheck, IconCopy } from '@tabler/icons-react'
import type { ReactNode } from 'react'

export function PageTitle({ children, aside, above }: { children: ReactNode; aside?: ReactNode; above?: ReactNode }) {
  return (
    <Group justify="space-between" align="flex-end" mb="md" gap="sm">
      <Box miw={0}>
        {above && <Text size="sm" c="dimmed" mb={2}>{above}</Text>}
        <Title order={1} fz={24} style={{ overflowWrap: 'anywhere' }}>{children}</Title>
      </Box>
      {aside && <Group gap="xs">{aside}</Group>}
    </Group>
  )
}

/** A command to copy. */
export function Command({ children }: { children: string }) {
  return (
    <Group className="surface" wrap="nowrap" gap="xs" pl="sm" pr={6} py={6} align="flex-start" style={{ textAlign: 'left' }}>
      <Text component="pre" className="mono" m={0} py={3} flex={1} style={{ whiteSpace: 'pre', overflowX: 'auto' }} tabIndex={0}>{children}</Text>
      <CopyButton value={children}>
        {({ copied, copy }) => (
          <Tooltip label={copied ? 'Copied' : 'Copy'}>
            <ActionIcon variant="subtle" color={copied ? 'sea' : 'gray'} onClick={copy} aria-label="Copy the command">
              {copied ? <IconCheck size={15} /> : <IconCopy size={15} />}
            </ActionIcon>
          </Tooltip>
        )}
      </CopyButton>
    </Group>
  )
}

/** What a page shows while it has nothing: why, and the first thing to do. */
export function Empty({ title, children, command, icon }: { title: string; children?: ReactNode; command?: string; icon?: ReactNode }) {
  return (
    <Stack className="surface" align="center" gap="sm" py={48} px="lg" ta="center">
      {icon && <Box c="dimmed" lh={0}>{icon}</Box>}
      <Title order={2} fz={18}>{title}</Title>
      {children && <Text c="dimmed" maw={560}>{children}</Text>}
      {command && <Box maw="100%" mt={4}><Command>{command}</Command></Box>}
    </Stack>
  )
}

export function Problem({ error, title = 'This could not be read' }: { error: Error; title?: string }) {
  return (
    <Alert color="red" variant="light" icon={<IconAlertCircle size={18} />} title={title}>
      <span className="wrap">{error.message}</span>
    </Alert>
  )
}

export function Waiting({ rows = 4 }: { rows?: number }) {
  return (
    <Stack gap="xs" aria-busy="true">
      {[...Array(rows).keys()].map((row) => <Skeleton key={row} height={36} radius="md" />)}
    </Stack>
  )
}

export function Fact({ name, children }: { name: string; children: ReactNode }) {
  return (
    <Box miw={0}>
      <Text size="xs" c="dimmed">{name}</Text>
      <Text component="div" size="sm" style={{ overflowWrap: 'anywhere' }}>{children}</Text>
    </Box>
  )
}
